"""The right-hand side of Theorem 6, factor by factor, and that of Prop 7.

(i)  E_{D_T ~ reduced expert} sum_t D_H(Alg_theta, reduced expert) <= T sqrt(R) (S + E)
(ii) |value of Alg_theta - value of the reduced expert| <= 2 b T^2 sqrt(R) (S + E) where no mean reward is beyond b
S = sqrt(6 ln(2 N T / delta) / n + 4 rho), E = sqrt(2 eps_real), N = N((nT)^-2), rho = (nT)^-2; with probability
>= 1 - delta. Prop 7 has posterior sampling in place of the reduced expert, and sqrt(eps_approx) more in E. The paper
writes c for the constants and takes |r_t| <= 1, b = 1; docs/theory/meters.md derives these.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from icrl.config import EnvironmentConfig, GaussianBanditConfig, LinearBanditConfig

LogCover = Callable[[float], float]
"""rho -> ln N(rho)."""

MOST = 10**30
"""The most trajectories."""


@dataclass(frozen=True)
class Guarantee:
    """Theorem 6 for n trajectories of T rounds."""

    horizon: int
    """T."""
    trajectories: int
    """n."""
    delta: float
    """The guarantee fails with at most this probability."""
    log_ratio: float
    """ln R, R the ratio of Def 5 of the reduced expert to the context algorithm."""
    log_cover: float
    """ln N at `rho`."""
    eps_real: float
    """Of Assumption A: how far the best weights of the class are from the reduced expert."""
    reward_bound: float | None = 1.0
    """b >= |E[r_t | environment, s_t, a_t]|; None where there is none, and no part (ii)."""
    eps_approx: float | None = None
    """Of Prop 7: how far the label is from posterior sampling; None: Theorem 6."""

    @property
    def rho(self) -> float:
        """(n T)^-2, the scale of the cover."""
        return 1.0 / (self.trajectories * self.horizon) ** 2

    @property
    def root_ratio(self) -> float:
        """sqrt(R); inf beyond what a float holds."""
        return math.exp(self.log_ratio / 2) if self.log_ratio < 1400 else math.inf

    @property
    def statistical(self) -> float:
        """S, what finite data cost."""
        log = self.log_cover + math.log(2 * self.horizon / self.delta)
        return math.sqrt(6 * log / self.trajectories + 4 * self.rho)

    @property
    def approximation(self) -> float:
        """E, what the class lacks, and with Prop 7 the label."""
        return math.sqrt(2 * self.eps_real) + math.sqrt(self.eps_approx or 0.0)

    @property
    def hellinger(self) -> float:
        """(i), the bound on E sum_t D_H."""
        return self.horizon * self.root_ratio * (self.statistical + self.approximation)

    @property
    def reward(self) -> float:
        """(ii), the bound on the difference of expected total rewards; inf where mean rewards have no bound."""
        return self.reward_at_most * self.hellinger

    @property
    def hellinger_at_most(self) -> float:
        """sqrt(2) T: no sum of T distances D_H is larger."""
        return math.sqrt(2) * self.horizon

    @property
    def reward_at_most(self) -> float:
        """2 b T: no two expected total rewards are further apart; inf where mean rewards have no bound."""
        return math.inf if self.reward_bound is None else 2 * self.reward_bound * self.horizon

    @property
    def says_something(self) -> tuple[bool, bool]:
        """Whether (i) and (ii) are below what holds anyway."""
        return self.hellinger < self.hellinger_at_most, self.reward < self.reward_at_most

    def table(self) -> str:
        """Every factor on a line of its own."""
        (first, second), per = self.says_something, "{:<34}{:>14}  {}"
        expert = "reduced expert" if self.eps_approx is None else "posterior sampling"
        label = [] if self.eps_approx is None else [("sqrt(eps_approx)", f"{math.sqrt(self.eps_approx):.4g}", "")]
        bound, b = self.reward_bound, "" if self.reward_bound == 1 else " b"
        if bound is None:
            last = per.format("(ii) difference of total reward", "-", "needs bounded mean rewards, which these are not")
        else:
            note = _verdict(second, f"2{b} T") + (f", b = {bound:.4g} bounds the mean rewards" if b else "")
            last = per.format("(ii) difference of total reward", f"{self.reward:.4g}", note)
        lines = [
            per.format("T", f"{self.horizon:,}", "rounds"),
            per.format("n", f"{self.trajectories:,}", "trajectories"),
            per.format("sqrt(R)", f"{self.root_ratio:.4g}", f"{expert} against context (Def 5)"),
            per.format("ln N((nT)^-2)", f"{self.log_cover:.4g}", "of the class, an upper bound"),
            per.format("sqrt(6 ln(2NT/delta)/n + 4 rho)", f"{self.statistical:.4g}", f"delta = {self.delta:g}"),
            per.format("sqrt(2 eps_real)", f"{self.approximation:.4g}", f"eps_real = {self.eps_real:g}"),
            *(per.format(*line).rstrip() for line in label),
            per.format("(i)  sum of Hellinger distances", f"{self.hellinger:.4g}", _verdict(first, "sqrt(2) T")),
            last,
        ]
        return "\n".join(lines)


def guarantee(
    log_cover: LogCover,
    *,
    horizon: int,
    trajectories: int,
    delta: float = 0.05,
    log_ratio: float = 0.0,
    eps_real: float = 0.0,
    reward_bound: float | None = 1.0,
    eps_approx: float | None = None,
) -> Guarantee:
    """Theorem 6 for a class given by its ln N(rho), `TheoryClass.log_cover` or another; with eps_approx Prop 7.

    reward_bound: as `reward_bound` tells of an environment; None leaves part (ii) out.

    Raises:
        ValueError: a number out of its range.
    """
    for name, value in (("horizon", horizon), ("trajectories", trajectories)):
        if value < 1:
            raise ValueError(f"{name} = {value}: expected at least 1")
        if value > MOST:
            raise ValueError(f"{name} = {value:g}: expected at most {MOST:g}")
    if not 0 < delta < 1:
        raise ValueError(f"delta = {delta}: expected a probability between 0 and 1")
    if not log_ratio >= 0:
        raise ValueError(f"log_ratio = {log_ratio}: expected at least 0, no ratio is below 1")
    for name, eps in (("eps_real", eps_real), ("eps_approx", eps_approx or 0.0)):
        if not eps >= 0:
            raise ValueError(f"{name} = {eps}: expected at least 0")
    if reward_bound is not None and not reward_bound > 0:
        raise ValueError(f"reward_bound = {reward_bound}: expected a positive number, or None")
    rho = 1.0 / (trajectories * horizon) ** 2
    return Guarantee(horizon, trajectories, delta, log_ratio, log_cover(rho), eps_real, reward_bound, eps_approx)


def reward_bound(environment: EnvironmentConfig) -> float | None:
    """b >= |E[r_t | environment, s_t, a_t]| for every environment of the prior; None where there is none.

    Actions of a linear bandit are in [-1, 1]^d: d for w* in the unit box, sqrt(d) on the sphere.
    """
    match environment:
        case GaussianBanditConfig():
            return None
        case LinearBanditConfig(noise="bernoulli"):
            return 1.0
        case LinearBanditConfig():
            return {"unit_box": float(environment.dim), "sphere": math.sqrt(environment.dim)}.get(environment.prior)
        case _:
            return 1.0


def fewest_trajectories(log_cover: LogCover, *, part: int = 2, **given: float | None) -> int | None:
    """The fewest n (to 1 %) for which part (i) or (ii) says something; None where no n up to 10^30 does.

    given: the arguments of `guarantee` but for `trajectories`.
    """

    def says(n: int) -> bool:
        return guarantee(log_cover, trajectories=n, **given).says_something[part - 1]  # type: ignore[arg-type]

    low, high = 0, 1
    while not says(high):
        low, high = high, 10 * high
        if high > MOST:
            return None
    while high - low > max(1, high // 100):
        middle = (low + high) // 2
        low, high = (low, middle) if says(middle) else (middle, high)
    return high


def _verdict(says: bool, trivial: str) -> str:  # noqa: FBT001
    return f"below {trivial}" if says else f"vacuous: {trivial} holds anyway"
