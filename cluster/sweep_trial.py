"""What one trial of a sweep does, in a thread of a Ray actor: dataset, training, evaluation, into its run directory."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cluster.sweep_state import EARLY, SweepDirectory, outcome
from cluster.sweep_trials import Trial
from cluster.trial import train_in_trial
from icrl.board import choose_hparams
from icrl.files import atomic_write, locked, read_json, write_json
from icrl.run_dir import RunDirectory
from train.launch import TrainPlan

_LOCK_PATIENCE_S = 60.0
"""How long the process that worked on the trial before may take to die."""


@dataclass(frozen=True)
class TrialTask:
    """One trial and what it is given."""

    trial: Trial
    plan: TrainPlan
    sweep: SweepDirectory
    session: str
    """Of the command that runs the sweep; a trial at work bears it."""
    resources: Mapping[str, float]
    """Of one training worker."""
    varied: tuple[str, ...]


def run_trial(task: TrialTask, validated: Callable[[int, float], None]) -> None:
    """Bring a trial to its end, or to a checkpoint if it is asked to stop. What goes wrong is recorded, not raised.

    Doing it again goes on where it was. `validated` is told step and value of each new validation loss.
    """
    if task.sweep.stop_requested():
        return
    run = RunDirectory.open(task.trial.loaded)
    with locked(run.path / ".lock", patience=_LOCK_PATIENCE_S):
        if outcome(run) in ("done", "early", "diverged"):
            return
        began, account = time.time(), _account(task, run)
        try:
            with run.failing():
                _stages(task, run, validated)
        except Exception:
            atomic_write(run.logs / "error.txt", traceback.format_exc().encode())
        finally:
            write_json(run.path / "trial.json", account | {"seconds": account["seconds"] + time.time() - began})


def _stages(task: TrialTask, run: RunDirectory, validated: Callable[[int, float], None]) -> None:
    from data_gen.generate import generate
    from eval.run import evaluate_run

    loaded = task.trial.loaded
    if not task.plan.finished:
        if run.stop_requested() not in (None, EARLY):
            run.clear_stop_request()
        # trials that share a dataset ask for it together: one writes it, the others wait for its lock
        generate(loaded.config, patience=math.inf)
        state = train_in_trial(loaded, task.plan, task.resources, validated)
        if state != "trained":
            return
    evaluate_run(run, loaded.config)


def _account(task: TrialTask, run: RunDirectory) -> dict[str, Any]:
    """Write trial.json: what the sweep says of the trial, and the seconds that earlier sessions spent on it."""
    path = run.path / "trial.json"
    spent = read_json(path)["seconds"] if path.exists() else 0.0
    trial = task.trial
    record = {
        "number": trial.number,
        "overrides": trial.overrides,
        "parameters": task.plan.parameters,
        "session": task.session,
        "seconds": spent,
    }
    write_json(path, record)
    shown = {path: trial.overrides[path] for path in task.varied if path in trial.overrides}
    choose_hparams(run, {path: value for path, value in shown.items() if isinstance(value, bool | int | float | str)})
    return record
