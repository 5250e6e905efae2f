"""The distribution ratio R_{Alg_E, Alg_0} (Def 5): estimated from the context's trajectories, bounded where it can be.

R = E_{D ~ Alg_E} w(D) = E_{D ~ Alg_0} w(D)^2 with w = prod_t Alg_E(a_t | D_{t-1}, s_t) / Alg_0(a_t | D_{t-1}, s_t).
States and rewards cancel. w has mean 1 under Alg_0 where Alg_0 plays whatever Alg_E may play.

Shapes: n trajectories, T rounds, A actions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from icrl.algorithms import Algorithm
from icrl.config import (
    AlgorithmConfig,
    Config,
    EnvironmentConfig,
    GaussianBanditConfig,
    LinearBanditConfig,
    MixtureConfig,
    UniformConfig,
)
from icrl.experts import (
    context_algorithm,
    is_posterior_sampling,
    posterior_sampling,
    sees_environment,
    smoothed,
)
from icrl.rollout.loop import play
from icrl.rollout.replay import History, history, played, rounds
from icrl.streams import Split

Float64Array = npt.NDArray[np.float64]

FEW = 20
"""Effective sample size below which an estimate says little more than that the ratio is large."""


_SLOW = 32
"""Most trajectories where probabilities are shares of samples, or integrals over the whole line."""
_OWN_PLAYS = 64
"""Trajectories that the expert itself plays where those of the context do not reach it."""


@dataclass(frozen=True)
class LogWeights:
    """ln w of trajectories of Alg_0."""

    values: Float64Array
    """float64[n]; -inf where Alg_E would not have played what was played."""
    uncovered: bool
    """Whether after some prefix of a trajectory Alg_E may play what Alg_0 never does: then R is infinite."""
    impossible: int
    """Trajectories left out: Alg_0 as it is computed here would not have played them."""


@dataclass(frozen=True)
class Ratio:
    """An estimate of R from trajectories of Alg_0."""

    log: float
    """ln of the estimate, the mean of w^2; inf where R is known to be infinite."""
    relative_error: float
    """Standard error of the estimate over the estimate; inf with fewer than two trajectories."""
    effective_sample_size: float
    """(sum w)^2 / sum w^2, at most n."""
    mean_weight: float
    """Mean of w; its expectation is 1, and far below it the trajectories that carry R were not drawn."""
    trajectories: int

    @property
    def value(self) -> float:
        """The estimate; inf beyond what a float holds."""
        return math.exp(self.log) if self.log < 700 else math.inf

    @property
    def standard_error(self) -> float:
        """Of the estimate."""
        return self.value * self.relative_error

    @property
    def lower_bound(self) -> bool:
        """Whether the estimate is, in practice, only a lower bound: what carries R was hardly drawn, if at all."""
        return self.effective_sample_size < min(FEW, self.trajectories / 2) or self.mean_weight < 0.5


def log_weights(expert: Algorithm, context: Algorithm, past: History) -> LogWeights:
    """ln w of the trajectories of `past`, which Alg_0 = `context` played, by replay of both.

    Probabilities that are shares of Monte Carlo samples count as `smoothed`: their error enters w.
    """
    n = len(past.action)
    total, impossible, uncovered = np.zeros(n), np.zeros(n, np.bool_), False
    for t, (p, q) in enumerate(zip(rounds(expert, past), rounds(context, past), strict=True)):
        p_expert, p_context = smoothed(p, expert), smoothed(q, context)
        reached = ~impossible & (total > -np.inf)
        uncovered |= bool(((p > 0) & (p_context == 0) & reached[:, None]).any())
        action = past.action[:, t]
        with np.errstate(divide="ignore", invalid="ignore"):
            step = np.log(played(p_expert, action)) - np.log(played(p_context, action))
        impossible |= played(p_context, action) == 0
        total += np.where(impossible, 0.0, step)
    return LogWeights(total[~impossible], uncovered, int(impossible.sum()))


def estimate(weights: LogWeights) -> Ratio:
    """R from ln w of trajectories of Alg_0: the mean of w^2, its error, and how many trajectories carry it.

    Raises:
        ValueError: no trajectories.
    """
    values = weights.values
    if not values.size:
        raise ValueError("no trajectory that the context would have played: there is nothing to estimate a ratio from")
    top = max(float(values.max()), -1e300)
    w = np.exp(values - top)
    squares = w * w
    mean = float(squares.mean())
    error = float(squares.std(ddof=1) / math.sqrt(w.size) / mean) if w.size > 1 and mean > 0 else math.inf
    ess = float(w.sum() ** 2 / squares.sum()) if mean > 0 else 0.0
    log = 2 * top + math.log(mean) if mean > 0 else -math.inf
    average = float(np.exp(min(top, 700.0)) * w.mean())
    return Ratio(math.inf if weights.uncovered else log, error, ess, average, w.size)


def log_lower_bound(
    expert: Algorithm, context: Algorithm, environment: EnvironmentConfig, seed: int, count: int = _OWN_PLAYS
) -> tuple[float, float]:
    """A lower bound on ln R with its standard error: the mean of ln w in `count` > 1 trajectories of Alg_E itself.

    ln R = ln E_{Alg_E} w >= E_{Alg_E} ln w = KL(P_{Alg_E} || P_{Alg_0}) (Jensen), which no rare trajectory dominates;
    inf where Alg_E played what Alg_0 never does. The environments are those of split EVAL under this seed.
    """
    indices = np.arange(count, dtype=np.int64)
    own = play(environment, expert, seed, Split.EVAL, indices)
    rows: dict[str, npt.NDArray[Any]] = {"index": indices, "action": own.action, "reward": own.reward}
    if own.state is not None:
        rows["state"] = own.state
    weights = log_weights(expert, context, history(environment, seed, Split.EVAL, rows))
    if weights.impossible:
        return math.inf, 0.0
    return float(weights.values.mean()), float(weights.values.std(ddof=1) / math.sqrt(count))


@dataclass(frozen=True)
class KnownRatio:
    """What is known of the ratio of a label's reduced expert to the context before anything is played."""

    defined: bool
    """False where the context sees the environment: what it plays is no function of the history."""
    log_bound: float | None
    """ln R at most; None where no bound is known."""
    why: str


def known_ratio(config: Config, label: str | None = None) -> KnownRatio:
    """Of the reduced expert of `label`, by default the config's; exactly ln R = 0 for distillation."""
    label = label or config.expert.label
    if any(sees_environment(component.algorithm) for component in config.context if component.weight > 0):
        return KnownRatio(defined=False, log_bound=None, why="the context sees the environment")
    if label == "distillation":
        return KnownRatio(defined=True, log_bound=0.0, why="the expert is the context itself")
    if label == "approximate" and config.expert.estimates_by != "posterior_sample":
        why = f"the reduced expert of {config.expert.estimates_by} is not posterior sampling"
        return KnownRatio(defined=True, log_bound=None, why=why)
    bound, why = log_upper_bound(config) or (None, "no component of the context is posterior sampling or uniform")
    return KnownRatio(defined=True, log_bound=bound, why=why)


def log_upper_bound(config: Config) -> tuple[float, str] | None:
    """ln of the least upper bound on R_{TS, Alg_0} that is known for the config's context, and why; or None.

    A component of weight w that is the expert bounds R by 1 / w, a step-level mixture with a share v of the expert by
    v^-T / w; uniform play in place of the expert costs A^T more.
    """
    total = sum(component.weight for component in config.context)
    T, A = config.environment.horizon, config.environment.n_actions
    found: list[tuple[float, str]] = []
    for component in config.context:
        if component.weight <= 0:
            continue
        share, algorithm = component.weight / total, component.algorithm
        whole = f"a share of {share:g} of the trajectories"
        for part, step_share in _parts(algorithm):
            step = "" if step_share == 1 else f" and {step_share:g} of their steps"
            if is_posterior_sampling(part, config.environment):
                found.append((-math.log(share) - T * math.log(step_share), f"{whole}{step} is the expert's"))
            elif isinstance(part, UniformConfig):
                found.append((-math.log(share) + T * math.log(A / step_share), f"{whole}{step} is uniform"))
    return min(found) if found else None


def _parts(algorithm: AlgorithmConfig) -> Iterator[tuple[AlgorithmConfig, float]]:
    """The algorithms that act, each with its share of the steps."""
    if not isinstance(algorithm, MixtureConfig):
        yield algorithm, 1.0
        return
    total = sum(part.weight for part in algorithm.components)
    for part in algorithm.components:
        if part.weight > 0:
            yield part.algorithm, part.weight / total


class Stored(Protocol):
    """What is asked of a split of a dataset; `icrl.store.SplitReader` is one."""

    recipe: dict[str, Any]
    split: str

    @property
    def n(self) -> int:
        """Trajectories."""
        ...

    def rows(self, rows: slice) -> dict[str, npt.NDArray[Any]]:
        """Consecutive rows of every array."""
        ...


def ratio_lines(config: Config, reader: Stored, limit: int = 256) -> list[str]:
    """The ratio of each expert to the context, as lines of text, from the first `limit` trajectories of a split.

    Seconds: both algorithms are replayed round by round. The label of `config` plays no part, but that an approximate
    one has a line of its own.
    """
    known = known_ratio(config, "distillation")
    if not known.defined:
        return [f"{label}: not defined ({known.why})" for label in ("distillation", "optimal")]
    lines = [f"distillation: 1 ({known.why})"]
    if config.expert.label == "approximate":
        same = config.expert.estimates_by == "posterior_sample"
        lines.append(f"approximate: {'as optimal' if same else f'not computed ({known_ratio(config).why})'}")
    expert = posterior_sampling(config.environment)
    if expert.algorithm is None:
        return [*lines, f"optimal: not computed ({expert.reason})"]
    slow = isinstance(config.environment, LinearBanditConfig | GaussianBanditConfig)
    n = min(limit, reader.n, _SLOW if slow else limit)
    rows = {"index": np.arange(n, dtype=np.int64)} | reader.rows(slice(0, n))
    past = history(config.environment, reader.recipe["seed"], Split[reader.split.upper()], rows)
    context, seed = context_algorithm(config), reader.recipe["seed"]
    weights = log_weights(expert.algorithm, context, past)
    lower = None
    if not weights.uncovered and weights.values.size and estimate(weights).lower_bound:
        lower = log_lower_bound(expert.algorithm, context, config.environment, seed, _SLOW if slow else _OWN_PLAYS)
    text = describe(weights, lower=lower, upper=log_upper_bound(config))
    return [*lines, f"optimal (posterior sampling: {expert.reason}): {text}"]


def describe(
    weights: LogWeights, *, lower: tuple[float, float] | None = None, upper: tuple[float, str] | None = None
) -> str:
    """One line: the estimate with its error and effective sample size, and all that must be said with it.

    lower: as `log_lower_bound`; upper: as `log_upper_bound`.
    """
    notes: list[str] = []
    if weights.impossible:
        notes.append(f"left out {weights.impossible} that the context as computed here would not have played")
    if weights.uncovered:
        return "; ".join(["infinite", "the expert may play what the context never does there", *notes])
    if not weights.values.size:
        return "; ".join(["not estimated", *notes])
    found = estimate(weights)
    ess = f"effective sample size {found.effective_sample_size:.1f} of {found.trajectories} trajectories"
    text = f"{_number(found.log)} (standard error {100 * found.relative_error:.0f} %), {ess}"
    if found.lower_bound:
        because = f"the mean weight {found.mean_weight:.2g} should be 1"
        if found.log < 0:  # no ratio is below 1
            text = f"not reached by these trajectories, as {because}; {ess}"
        else:
            notes.insert(0, f"in practice a lower bound, as {because}")
    if lower is not None:
        mean, error = lower
        notes.append(f"at least {_number(max(mean - 2 * error, 0))} by the divergence in the expert's own plays")
    if upper is not None:
        notes.append(f"at most {_number(upper[0])}: {upper[1]}")
    return "; ".join([text, *notes])


def _number(log: float) -> str:
    """exp(log), in powers of ten where it is large."""
    if math.isinf(log):
        return "infinity" if log > 0 else "0"
    return f"{math.exp(log):.3g}" if log < math.log(1e6) else f"10^{log / math.log(10):.1f}"
