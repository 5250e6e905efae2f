"""From a sweep file to its outcome: everything is checked before anything starts."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.sweep_file import SweepFile, is_sweep, quick_grid, read_sweep
from cluster.sweep_resources import Resources, concurrency, local_nodes, per_worker, require_places
from cluster.sweep_state import Outcome, SweepDirectory, changes, definition, numbered, outcome
from cluster.sweep_trial import TrialTask
from cluster.sweep_trials import Trial, check_metric, directory, expand, text_of, varied
from data_gen.plan import plan as plan_dataset
from eval.line_up import check as check_line_up
from icrl.cli import FAILED, INTERRUPTED, TERMINATED, say
from icrl.files import require_free, size_text
from icrl.run_dir import RunDirectory
from icrl.store import Place
from train.launch import TrainPlan, check

_PARTS = ("backbone", "embedding", "position", "read_out", "total")


@dataclass(frozen=True)
class SweepPlan:
    """A sweep, every trial of which can run."""

    sweep: SweepFile
    directory: SweepDirectory
    trials: tuple[Trial, ...]
    training: tuple[TrainPlan, ...]
    """One for each trial."""
    outcomes: tuple[Outcome, ...]
    resources: tuple[Resources, ...]
    """Of one worker of each trial."""
    concurrent: int
    cluster: bool
    """Ray is connected already."""
    datasets: Mapping[Place, int]
    """Datasets and the bytes that each lacks."""
    changes: tuple[str, ...]
    """What differs from the sweep as it was begun."""

    def describe(self, *, table: bool) -> str:
        """The sweep in a few lines; `table` adds a line for each trial."""
        counts = {name: self.outcomes.count(name) for name in dict.fromkeys(self.outcomes)}
        states = ", ".join(f"{count} {name}" for name, count in counts.items())
        lacking = sum(self.datasets.values())
        lines = [
            f"sweep           {self.directory.path}",
            f"trials          {len(self.trials)} ({states}), {self.concurrent} at a time",
            f"datasets        {len(self.datasets)}; missing {size_text(lacking)}",
        ]
        if table:
            lines += ["", *self._table()]
        return "\n".join(lines)

    def _table(self) -> list[str]:
        rows: list[tuple[str, ...]] = [("trial", "", *_PARTS)]
        for trial, training in zip(self.trials, self.training, strict=True):
            counts = (f"{training.parameters[part]:,}" for part in _PARTS)
            rows.append((str(trial.number), text_of(trial.overrides), *counts))
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        return [
            "  ".join(c.ljust(w) if i == 1 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
            for row in rows
        ]


def make(file: Path, overrides: Sequence[str], *, gpus: int | None, cluster: bool) -> SweepPlan:
    """Every check of every trial; writes nothing. `gpus` are a connected cluster's; None: this machine's.

    Raises:
        ConfigError, ValueError: what the sweep cannot do, and why.
    """
    sweep = read_sweep(file, overrides) if is_sweep(file) else quick_grid(file, overrides)
    trials = expand(sweep)
    check_metric(sweep, trials)
    relative = directory(sweep, trials)
    root = Path(trials[0].loaded.config.storage.root)
    place = SweepDirectory(root / relative)
    before = place.read()
    trials = numbered(trials, before, relative)
    training, resources = [], []
    datasets: dict[Place, int] = {}
    nodes: list[Resources] = _nodes() if cluster else []
    for trial in trials:
        config = trial.loaded.config
        planned = check(trial.loaded, gpus)
        check_line_up(config)
        found = plan_dataset(config)
        if not found.virtual:
            datasets[found.dataset] = found.bytes_needed
        share = per_worker(sweep, planned, config.train.threads)
        here = nodes or local_nodes(sweep, _gpus(planned), planned.workers * share["CPU"])
        require_places(sweep, planned.workers, share, here)
        training.append(planned)
        resources.append(share)
    _require_room({path: needed for path, needed in datasets.items() if isinstance(path, Path)})
    here = nodes or local_nodes(sweep, _gpus(training[0]), _cpus(training, resources))
    concurrent = min(
        concurrency(sweep, plan.workers, share, here) for plan, share in zip(training, resources, strict=True)
    )
    return SweepPlan(
        sweep=sweep,
        directory=place,
        trials=tuple(trials),
        training=tuple(training),
        outcomes=tuple(outcome(RunDirectory(plan.run.path)) for plan in training),
        resources=tuple(resources),
        concurrent=min(concurrent, len(trials)),
        cluster=cluster,
        datasets=datasets,
        changes=tuple(changes(before, definition(sweep, trials))) if before is not None else (),
    )


def carry_out(plan: SweepPlan, held: ExitStack, *, retry_failed: bool, verbose: bool) -> int:
    """Run what is not done, write what it shows; returns the exit code. Ray is entered into `held` if it is needed."""
    from cluster.sweep_report import refresh, summary

    place = plan.directory
    place.write(plan.sweep, list(plan.trials))
    session = secrets.token_hex(4)
    tasks = []
    for trial, training, resources, state in zip(
        plan.trials, plan.training, plan.resources, plan.outcomes, strict=True
    ):
        if state == "failed" and retry_failed:
            training.run.set_status("created")
        if state == "waiting" or (state == "failed" and retry_failed):
            tasks.append(TrialTask(trial, training, place, session, resources, tuple(varied(list(plan.trials)))))
    received = None
    if tasks:
        from cluster.sweep import run_sweep
        from cluster.sweep_display import Display

        if not plan.cluster:
            from data_gen.local_ray import local_ray

            cpus = int(_cpus(plan.training, plan.resources) + 0.999)
            held.enter_context(local_ray(at_least=cpus, verbose=verbose, logs=place.logs))
        with Display(place, plan.trials, session, lambda: _refresh_so_far(place.path)) as display:
            try:
                received = run_sweep(plan.sweep, place, tasks, plan.concurrent, display)
            except KeyboardInterrupt:
                received = "SIGINT"
    rows = refresh(place.path)
    summary(place.path, rows)
    if received is not None:
        say("stopped; the same command resumes")
        return INTERRUPTED if received == "SIGINT" else TERMINATED
    seed = plan.trials[0].loaded.config.eval.seed
    code, following = _ending(plan.sweep, place.path, rows, seed)
    if following:
        say(f"next            {following}")
    return code


def _refresh_so_far(directory: Path) -> None:
    """As trials end; what cannot be written now is written with the next one, or is an error at the end."""
    from cluster.sweep_report import refresh

    try:
        refresh(directory)
    except (ValueError, OSError) as error:
        say(f"the sweep's table is not up to date: {error}")


def _ending(sweep: SweepFile, directory: Path, rows: list[dict[str, Any]], seed: int) -> tuple[int, str | None]:
    """The exit code of a sweep that was not stopped, and what to do next; `seed` is that of its trials' evaluations."""
    from cluster.sweep_table import ranked

    states = {row["state"] for row in rows}
    if "failed" in states:
        return FAILED, "the same command with --retry-failed"
    if "waiting" in states:
        return FAILED, "the same command, which resumes"
    best = ranked(rows, sweep.config.metric.name, sweep.config.metric.goal)
    if not best:
        return FAILED, None
    unread = [row for row in rows if row["state"] == "done" and row.get("error")]
    run = directory / best[0]["directory"]
    fresh = seed + 1  # environments that had no part in the choice
    return FAILED if unread else 0, f"python -m eval {run} eval.environments=2000 eval.seed={fresh}"


def _require_room(datasets: Mapping[Path, int]) -> None:
    """Check each disk for what the datasets on it lack, in bytes.

    Raises:
        ValueError: one has too little room.
    """
    disks: dict[int, list[Path]] = {}
    for path in datasets:
        existing = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
        disks.setdefault(existing.stat().st_dev, []).append(path)
    for paths in disks.values():
        require_free(paths[0], sum(datasets[path] for path in paths))


def _cpus(training: Sequence[TrainPlan], resources: Sequence[Resources]) -> float:
    return max(plan.workers * share["CPU"] for plan, share in zip(training, resources, strict=True))


def _gpus(plan: TrainPlan) -> int:
    import torch

    return 0 if plan.device == "CPU" else torch.cuda.device_count()


def _nodes() -> list[Resources]:
    """The resources of each node of the connected cluster."""
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node["Resources"] for node in nodes if node["Alive"]]
