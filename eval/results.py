"""`results.json`: what an evaluation found, as frozen dataclasses that are written and read back unchanged.

Nothing in it depends on when or how fast it was made: the same run, config and machine give the same bytes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.line_up import TRANSFORMER, Role
from eval.regret import Estimate, Ratio
from icrl.files import read_json, write_json
from icrl.versions import RESULTS_VERSION


@dataclass(frozen=True)
class Curve:
    """A quantity at every round t = 1 .. T."""

    mean: tuple[float, ...]
    standard_error: tuple[float, ...]

    @staticmethod
    def of(estimate: Estimate) -> Curve:
        """From arrays [T]."""
        return Curve(tuple(estimate.mean.tolist()), tuple(estimate.standard_error.tolist()))


@dataclass(frozen=True)
class AlgorithmResult:
    """One algorithm in the fresh environments."""

    role: Role
    config: Mapping[str, Any] | None
    """The algorithm's config; null for the transformer."""
    final_regret: float
    """Mean over environments of sum_t <a* - a_t, w*>, t = 1 .. T."""
    final_regret_se: float
    suboptimality_final: float
    """Mean of <a* - a_T, w*>."""
    suboptimality_final_se: float
    regret: Curve
    """Cumulative."""
    suboptimality: Curve
    """Of each round alone."""


@dataclass(frozen=True)
class ReducedResult:
    """The transformer beside the exact reduced expert on held-out trajectories of the context; means over rounds."""

    trajectories: int
    what: str
    """The reduced expert, and how exact it is."""
    kl: float
    """KL(reduced expert || transformer), nats per round."""
    kl_se: float
    hellinger: float
    """Hellinger distance sqrt(sum_a (sqrt(p_a) - sqrt(q_a))^2) per round."""
    hellinger_se: float
    kl_floor: float | None = None
    """About what a perfect model would show, by sampling of the expert alone (`eval.reduced.Floor`); null where the
    expert is exact, and in files from before it was measured."""
    hellinger_floor: float | None = None


@dataclass(frozen=True)
class ApproximationResult:
    """An approximate label beside posterior sampling: epsilon_approx of Prop 7."""

    trajectories: int
    how: str
    """How the posterior of the best action was computed."""
    kl: float
    """E KL(Alg_E(. | D_T) || P_TS(. | D_T)), nats."""
    kl_se: float


@dataclass(frozen=True)
class ImitationResult:
    """The transformer on held-out trajectories of the context."""

    trajectories: int
    test_log_loss: float
    """-log Alg_theta(label | history), nats per round."""
    test_log_loss_se: float
    agreement: float
    """Share of rounds in which its most likely action is the label."""
    log_loss_by_round: Curve
    reduced: ReducedResult | None = None
    """null where no reduced expert can be computed, and in files from before it was."""
    approximation: ApproximationResult | None = None
    """null but for `expert.label` approximate."""


@dataclass(frozen=True)
class Expectation:
    """One line of `eval.expect` and what came of it."""

    what: str
    """teacher_ratio or uniform_ratio."""
    expected: float
    """The largest value that passes."""
    obtained: float | None
    """null where the ratio is undefined: the other algorithm's regret is 0."""
    passed: bool


@dataclass(frozen=True)
class Results:
    """The file. Curves have `horizon` entries; every mean is over the same `environments`, paired by environment."""

    version: int
    """`icrl.versions.RESULTS_VERSION`."""
    name: str
    config_hash: str
    """Of the run."""
    evaluation: str
    """sha256 of everything that decides the numbers: config, weights, dataset recipe and versions."""
    dataset_sha256: str
    """Of the dataset's recipe."""
    settings: Mapping[str, Any]
    """The `eval` section that was used."""
    environments: int
    horizon: int
    trained_steps: int
    parameters: Mapping[str, int]
    """By part of the transformer, and in total."""
    algorithms: Mapping[str, AlgorithmResult]
    teacher: str | None
    """Name of the teacher among the algorithms; null where the labels do not come from one algorithm alone."""
    teacher_difference: Curve | None
    """Cumulative regret of the transformer less the teacher's, paired."""
    teacher_ratio: Ratio | None
    """Final regret of the transformer over the teacher's, with its 95 % interval."""
    uniform_ratio: Ratio | None
    """The same over the uniform policy's."""
    imitation: ImitationResult | None
    """null without a test split."""
    expectations: tuple[Expectation, ...]

    @property
    def passed(self) -> bool:
        """Whether every expectation was met."""
        return all(expectation.passed for expectation in self.expectations)

    def ordered(self) -> list[tuple[str, AlgorithmResult]]:
        """The transformer, the teacher, then the others by their final regret."""
        rank = {"transformer": 0, "teacher": 1}
        return sorted(self.algorithms.items(), key=lambda item: (rank.get(item[1].role, 2), item[1].final_regret))


def save(results: Results, path: Path) -> None:
    """Write the file, atomically."""
    write_json(path, dataclasses.asdict(results))


def load(path: Path) -> Results:
    """The file that `save` wrote.

    Raises:
        ValueError: it is of another version, or not results at all.
    """
    values = read_json(path)
    version = values.get("version") if isinstance(values, dict) else None
    if version != RESULTS_VERSION:
        raise ValueError(f"{path}: results of version {version}, expected {RESULTS_VERSION}; evaluate the run again")
    try:
        return _parse(values)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: not the results of an evaluation ({error!r}); evaluate the run again") from error


def is_uniform(result: AlgorithmResult) -> bool:
    """Whether this is uniform play, asked for or not."""
    return result.config is not None and result.config["algorithm"] == "uniform"


def metrics(results: Results) -> dict[str, float]:
    """The results as scalars for a board or a sweep: tag -> value; what is undefined is left out."""
    transformer = results.algorithms[TRANSFORMER]
    tags: dict[str, float] = {
        "eval/regret_final": transformer.final_regret,
        "eval/regret_se": transformer.final_regret_se,
        "eval/suboptimality_final": transformer.suboptimality_final,
    }
    for tag, ratio in (("eval/teacher_ratio", results.teacher_ratio), ("eval/uniform_ratio", results.uniform_ratio)):
        if ratio is not None:
            tags[tag] = ratio.value
    if results.imitation is not None:
        tags["eval/test_log_loss"] = results.imitation.test_log_loss
        tags["eval/agreement"] = results.imitation.agreement
        if results.imitation.reduced is not None:
            tags["eval/reduced_kl"] = results.imitation.reduced.kl
            tags["eval/reduced_hellinger"] = results.imitation.reduced.hellinger
            if results.imitation.reduced.hellinger_floor is not None:
                tags["eval/reduced_hellinger_floor"] = results.imitation.reduced.hellinger_floor
        if results.imitation.approximation is not None:
            tags["eval/approximation_kl"] = results.imitation.approximation.kl
    for name, result in results.algorithms.items():
        tags[f"eval/regret/{name}"] = result.final_regret
    return tags


def table(results: Results) -> str:
    """The results as aligned plain text, without a final newline."""
    uniform = next(result for result in results.algorithms.values() if is_uniform(result))
    teacher = results.algorithms[results.teacher] if results.teacher else None
    rows = [("algorithm", "role", "final regret", "x teacher", "x uniform")]
    for name, result in results.ordered():
        regret = f"{result.final_regret:.2f} ± {result.final_regret_se:.2f}"
        rows.append((name, result.role, regret, _times(result, teacher), _times(result, uniform)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [_aligned(row, widths) for row in rows]
    lines.insert(1, "-" * max(len(line) for line in lines))
    return "\n".join([*lines, "", *_notes(results)])


def _notes(results: Results) -> Iterator[str]:
    yield (
        f"{results.environments:,} fresh environments (seed {results.settings['seed']}), horizon {results.horizon}, "
        f"± one standard error; {results.parameters['total']:,} parameters, {results.trained_steps:,} steps"
    )
    for label, ratio in (("teacher", results.teacher_ratio), ("uniform", results.uniform_ratio)):
        if ratio is not None:
            yield f"transformer / {label}: {ratio.value:.3f}, 95 % interval {ratio.low:.3f} to {ratio.high:.3f}"
    if results.imitation is None:
        yield "imitation: not measured, for want of a test split"
    else:
        found = results.imitation
        yield (
            f"imitation of {found.trajectories:,} test trajectories: log-loss {found.test_log_loss:.4f} nats a round, "
            f"agreement {100 * found.agreement:.1f} %"
        )
        if (near := found.reduced) is not None:
            yield (
                f"reduced expert ({near.what}) on {near.trajectories:,} of them: KL {near.kl:.4f} ± {near.kl_se:.4f} "
                f"nats a round, Hellinger distance {near.hellinger:.4f} ± {near.hellinger_se:.4f}"
            )
            if near.kl_floor is not None and near.hellinger_floor is not None:
                yield (
                    f"  of these about {near.kl_floor:.4f} and {near.hellinger_floor:.4f} are the sampling of the "
                    "expert alone, which a perfect model would show too"
                )
        if (law := found.approximation) is not None:
            yield (
                f"the label from posterior sampling on {law.trajectories:,} of them: KL {law.kl:.4f} ± "
                f"{law.kl_se:.4f} nats ({law.how})"
            )
    for expectation in results.expectations:
        base = expectation.what.removesuffix("_ratio")
        obtained = "none" if expectation.obtained is None else f"{expectation.obtained:.2f}"
        verdict = "PASS" if expectation.passed else "FAIL"
        yield f"expected <= {expectation.expected:.2f} x {base}, obtained {obtained}: {verdict}"


def _times(result: AlgorithmResult, base: AlgorithmResult | None) -> str:
    return f"{result.final_regret / base.final_regret:.2f}" if base and base.final_regret else "-"


def _aligned(row: tuple[str, ...], widths: list[int]) -> str:
    texts = [
        cell.ljust(width) if column < 2 else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join(texts).rstrip()


def _parse(values: Mapping[str, Any]) -> Results:
    imitation = values["imitation"]
    if imitation is not None:
        reduced, approximation = imitation.get("reduced"), imitation.get("approximation")
        parts = {
            "log_loss_by_round": _curve(imitation["log_loss_by_round"]),
            "reduced": reduced and ReducedResult(**reduced),
            "approximation": approximation and ApproximationResult(**approximation),
        }
        imitation = ImitationResult(**imitation | parts)
    difference = values["teacher_difference"]
    parsed = {
        "algorithms": {
            name: AlgorithmResult(
                **result | {"regret": _curve(result["regret"]), "suboptimality": _curve(result["suboptimality"])}
            )
            for name, result in values["algorithms"].items()
        },
        "teacher_difference": difference and _curve(difference),
        "teacher_ratio": values["teacher_ratio"] and Ratio(**values["teacher_ratio"]),
        "uniform_ratio": values["uniform_ratio"] and Ratio(**values["uniform_ratio"]),
        "imitation": imitation,
        "expectations": tuple(Expectation(**expectation) for expectation in values["expectations"]),
    }
    return Results(**{**values, **parsed})


def _curve(values: Mapping[str, Any]) -> Curve:
    return Curve(tuple(values["mean"]), tuple(values["standard_error"]))
