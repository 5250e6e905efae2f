"""The evaluation of a run directory, from weights to results.json; repeating it is free and changes nothing."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch

import icrl.checkpoint
from eval import figures, imitation, line_up, online
from eval.line_up import TRANSFORMER
from eval.online import Outcome
from eval.regret import Ratio, cumulative, estimate, paired_difference, ratio_of_means
from eval.results import (
    AlgorithmResult,
    ApproximationResult,
    Curve,
    Expectation,
    ImitationResult,
    ReducedResult,
    Results,
    load,
    metrics,
    save,
)
from icrl.board import Board, Record, read_records
from icrl.config import Config, config_hash, identity, to_dict
from icrl.files import canonical_json, sha256_bytes, sha256_file, sweep_partials
from icrl.model import Transformer
from icrl.run_dir import RunDirectory
from icrl.source import Source
from icrl.store import dataset_recipe, recipe_sha256
from icrl.versions import RESULTS_VERSION

Progress = Callable[[str], None]


def check(run: RunDirectory, config: Config) -> Transformer:
    """The run's model, on the CPU, once nothing stands against evaluating it with this config.

    Raises:
        ValueError: the run has no trained model or one of another config, or an expectation cannot be judged.
    """
    line_up.check(config)
    if not (run.path / icrl.checkpoint.WEIGHTS).is_file():
        status = run.status()
        step = f" at step {status['step']:,}" if "step" in status else ""
        raise ValueError(
            f"{run.path} has no trained model yet (its state is {status['state']}{step}): "
            "finish the training with the command that began it, then evaluate"
        )
    model = icrl.checkpoint.load(run.path)
    if (model.config, model.environment) != (config.model, config.environment):
        raise ValueError(f"{run.path / icrl.checkpoint.WEIGHTS} is of another model or environment than the config")
    return model


def evaluate_run(
    run: RunDirectory, config: Config, *, progress: Progress = lambda line: None, force: bool = False
) -> Results:
    """Evaluate a trained run and write results.json, figures/, the board and the status "done".

    `config` is the run's own but for its eval section. Where results.json is already that of the same evaluation it is
    returned as it is, unless `force`; only the verdict on changed expectations is renewed. The caller holds the run's
    lock. A kill at any moment leaves the same call to do the same again.

    Raises:
        ValueError: as `check`.
    """
    model = check(run, config)
    source = _test_split(config, progress)
    name = evaluation_id(run, config)
    earlier = None if force else _earlier(run, name)
    if earlier is not None and (earlier.imitation is not None or source is None):
        progress(f"{run.results} holds the results of this evaluation already; --force evaluates again")
        results = _rejudged(earlier, config)
        if results != earlier:
            save(results, run.results)
        if not all((run.figures / name).exists() for name in figures.NAMES):
            figures.draw(results, run.figures)
    else:
        with _torch_threads(config.train.threads):
            results = _evaluate(run, config, model, source, name, progress)
        _write(run, results)
    details = {key: value for key, value in run.status().items() if key not in ("state", "time", "error")}
    run.set_status("done", **details | {"expectations_met": results.passed})
    return results


def evaluation_id(run: RunDirectory, config: Config) -> str:
    """sha256 of everything that decides the numbers; what is expected of them is not part of it."""
    evaluation = to_dict(config.eval)
    evaluation.pop("expect")
    decided_by = {
        "config": identity(config) | {"eval": evaluation},
        "weights": sha256_file(run.path / icrl.checkpoint.WEIGHTS),
        "dataset": recipe_sha256(dataset_recipe(config)),
        "version": RESULTS_VERSION,
    }
    return sha256_bytes(canonical_json(decided_by))


def trained_steps(run: RunDirectory) -> int:
    """The last step that training recorded; 0 without any."""
    steps = [
        record["step"] for record in read_records(run.metrics) if any(t.startswith("train/") for t in record["tags"])
    ]
    return max(steps, default=0)


@contextlib.contextmanager
def _torch_threads(number: int) -> Iterator[None]:
    """Torch with as many threads as training had: sums do not depend on the machine, and a busy one is not slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _test_split(config: Config, progress: Progress) -> Source | None:
    try:
        return imitation.open_test_split(config)
    except ValueError as error:
        progress(f"imitation is not measured: {error}")
        return None


def _earlier(run: RunDirectory, name: str) -> Results | None:
    """The results on disk, if they are of the same evaluation."""
    try:
        found = load(run.results)
    except (ValueError, FileNotFoundError):
        return None
    return found if found.evaluation == name else None


def _rejudged(results: Results, config: Config) -> Results:
    return dataclasses.replace(
        results,
        settings=to_dict(config.eval),
        expectations=_judge(config, results.teacher_ratio, results.uniform_ratio),
    )


def _evaluate(
    run: RunDirectory, config: Config, model: Transformer, source: Source | None, name: str, progress: Progress
) -> Results:
    model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    outcomes = online.evaluate(config, model, progress=progress)
    found = None
    if source is not None:
        progress(f"imitation: {min(source.n, imitation.MAX_TRAJECTORIES):,} test trajectories")
        found = _imitation(imitation.evaluate(config, model, source))
    by_name = {outcome.entrant.name: cumulative(outcome.suboptimality) for outcome in outcomes}
    teacher = next((o.entrant.name for o in outcomes if o.entrant.role == "teacher"), None)
    uniform = next(
        o.entrant.name for o in outcomes if o.entrant.algorithm and o.entrant.algorithm.algorithm == "uniform"
    )
    regret = by_name[TRANSFORMER]
    teacher_ratio = ratio_of_means(regret[:, -1], by_name[teacher][:, -1]) if teacher else None
    uniform_ratio = ratio_of_means(regret[:, -1], by_name[uniform][:, -1])
    return Results(
        version=RESULTS_VERSION,
        name=config.name,
        config_hash=config_hash(run.config()),
        evaluation=name,
        dataset_sha256=recipe_sha256(dataset_recipe(config)),
        settings=to_dict(config.eval),
        environments=config.eval.environments,
        horizon=config.environment.horizon,
        trained_steps=trained_steps(run),
        parameters=dict(model.num_parameters()),
        algorithms={outcome.entrant.name: _algorithm(outcome) for outcome in outcomes},
        teacher=teacher,
        teacher_difference=Curve.of(paired_difference(regret, by_name[teacher])) if teacher else None,
        teacher_ratio=teacher_ratio,
        uniform_ratio=uniform_ratio,
        imitation=found,
        expectations=_judge(config, teacher_ratio, uniform_ratio),
    )


def _imitation(measured: imitation.Imitation) -> ImitationResult:
    near, label = measured.distance, measured.approximation
    return ImitationResult(
        trajectories=measured.trajectories,
        test_log_loss=float(measured.log_loss.mean),
        test_log_loss_se=float(measured.log_loss.standard_error),
        agreement=measured.agreement,
        log_loss_by_round=Curve.of(measured.log_loss_by_round),
        reduced=None
        if near is None
        else ReducedResult(
            trajectories=near.trajectories,
            what=near.what,
            kl=float(near.kl.mean),
            kl_se=float(near.kl.standard_error),
            hellinger=float(near.hellinger.mean),
            hellinger_se=float(near.hellinger.standard_error),
            kl_floor=near.floor.kl if near.floor else None,
            hellinger_floor=near.floor.hellinger if near.floor else None,
        ),
        approximation=None
        if label is None
        else ApproximationResult(label.trajectories, label.how, label.mean, label.standard_error),
    )


def _algorithm(outcome: Outcome) -> AlgorithmResult:
    regret = Curve.of(estimate(cumulative(outcome.suboptimality)))
    suboptimality = Curve.of(estimate(outcome.suboptimality))
    config: dict[str, Any] | None = to_dict(outcome.entrant.algorithm) if outcome.entrant.algorithm else None
    return AlgorithmResult(
        role=outcome.entrant.role,
        config=config,
        final_regret=regret.mean[-1],
        final_regret_se=regret.standard_error[-1],
        suboptimality_final=suboptimality.mean[-1],
        suboptimality_final_se=suboptimality.standard_error[-1],
        regret=regret,
        suboptimality=suboptimality,
    )


def _judge(config: Config, teacher_ratio: Ratio | None, uniform_ratio: Ratio | None) -> tuple[Expectation, ...]:
    asked = (
        ("teacher_ratio", config.eval.expect.teacher_ratio, teacher_ratio),
        ("uniform_ratio", config.eval.expect.uniform_ratio, uniform_ratio),
    )
    return tuple(
        Expectation(what, expected, found.value if found else None, found is not None and found.value <= expected)
        for what, expected, found in asked
        if expected is not None
    )


def _write(run: RunDirectory, results: Results) -> None:
    """Figures, board, then results.json: once it stands, all that belongs to it does."""
    sweep_partials(run.path)
    run.results.unlink(missing_ok=True)
    drawn = figures.draw(results, run.figures)
    png = next(path for path in drawn if path.suffix == ".png")
    board = Board(run, keep=_not_ours)
    board.scalars(results.trained_steps, metrics(results), {"eval/regret_figure": png})
    board.close("SUCCESS")
    save(results, run.results)


def _not_ours(record: Record) -> bool:
    """Whether a record of the board comes from elsewhere than an earlier evaluation."""
    return "eval/regret_final" not in record["tags"]
