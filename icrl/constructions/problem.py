"""What a construction assumes of its bandit: sizes, and the bounds that gate constants and depths follow from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral

import torch

from icrl.config import (
    BanditConfig,
    BernoulliBanditConfig,
    EnvironmentConfig,
    GaussianBanditConfig,
    GridWorldConfig,
    LinearBanditConfig,
    TabularMDPConfig,
)

GAUSSIAN_REACH = 6.0
"""Standard deviations within which Gaussian noise is assumed to stay; a draw lies beyond with probability 2e-9."""


@dataclass(frozen=True)
class RidgeProblem:
    """Ridge regression of rewards on actions at every round of a bandit: A_t = ridge I + sum_{j<t} a_j a_j'.

    Every number below holds at every token, those that tell an action and a reward included: they compute the estimate
    of the next round on the way, and keys of all tokens meet the queries of all later ones.
    """

    dim: int
    n_actions: int
    horizon: int
    ridge: float
    action_bound: float
    """B_a >= |a|."""
    reward_bound: float
    """R >= |r|."""

    @property
    def last(self) -> int:
        """2T, the index of the last token."""
        return 2 * self.horizon

    @property
    def smoothness(self) -> float:
        """beta >= the largest eigenvalue of A / i at both kinds of token: i = 2t - 1 or 2t, after t - 1 or t rounds."""
        return max(self.ridge, (self.ridge + self.action_bound**2) / 2)

    @property
    def condition(self) -> float:
        """kappa >= the condition number of A_T, for a spectrum within [ridge / 2T, beta] of A / i."""
        return self.smoothness * self.last / self.ridge

    @property
    def theorem_condition(self) -> float:
        """kappa of Thm 8: 2 T (B_a^2 + ridge) / ridge."""
        return 2 * self.horizon * (self.action_bound**2 + self.ridge) / self.ridge

    @property
    def estimate_bound(self) -> float:
        """|w_t| <= |A^{-1} M'| |r| <= R sqrt(T) / (2 sqrt(ridge)), M the matrix of the actions played."""
        return self.reward_bound * math.sqrt(self.horizon / self.ridge) / 2

    @property
    def width_bound(self) -> float:
        """a' A^{-1} a <= B_a^2 / ridge."""
        return self.action_bound**2 / self.ridge


def ridge_problem(
    environment: BanditConfig, ridge: float, action_bound: float | None = None, reward_bound: float | None = None
) -> RidgeProblem:
    """The problem of an environment; bounds left out follow from its prior, its action sets and its noise.

    Raises:
        ValueError: a number is not positive.
    """
    require_positive(ridge=ridge, action_bound=action_bound, reward_bound=reward_bound)
    bound = action_bound or (math.sqrt(environment.dim) if isinstance(environment, LinearBanditConfig) else 1.0)
    return RidgeProblem(
        dim=environment.dim,
        n_actions=environment.n_actions,
        horizon=environment.horizon,
        ridge=ridge,
        action_bound=bound,
        reward_bound=reward_bound or _reward_bound(environment, bound),
    )


def require_bandit(environment: EnvironmentConfig) -> None:
    """ValueError unless the environment is a bandit with a fixed action set."""
    if isinstance(environment, TabularMDPConfig | GridWorldConfig):
        raise ValueError(f"environment.kind = {environment.kind}: expected a bandit")
    if isinstance(environment, LinearBanditConfig) and environment.action_set == "fresh":
        raise ValueError("environment.action_set = fresh: expected fixed, a token holds the one action set")


def require_positive(**values: float | None) -> None:
    """ValueError that names the first value that is given and is not a positive number."""
    for name, value in values.items():
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} = {value}: expected a positive number")


def require_whole(**values: object) -> None:
    """ValueError that names the first value that is given and is no int; NumPy's are."""
    for name, value in values.items():
        if value is not None and not isinstance(value, Integral):
            raise ValueError(f"{name} = {value}: expected a whole number, as an int")


def require_one_of(name: str, value: str, known: Sequence[str]) -> None:
    """ValueError unless the value is known."""
    if value not in known:
        raise ValueError(f"{name} = {value!r}: expected one of {', '.join(known)}")


def require_exact_positions(problem: RidgeProblem, dtype: torch.dtype) -> None:
    """ValueError when i^2 of the last token is not a number of `dtype`, or that is no floating-point type."""
    if not dtype.is_floating_point:
        raise ValueError(f"dtype = {dtype}: expected a floating-point type; take torch.float64 or torch.float32")
    longest = math.isqrt(int(2 / torch.finfo(dtype).eps)) // 2
    if problem.horizon > longest:
        raise ValueError(
            f"environment.horizon = {problem.horizon}: {dtype} holds the squares of the tokens' positions exactly "
            f"up to T = {longest}; take torch.float64 or a shorter horizon"
        )


def _reward_bound(environment: BanditConfig, action_bound: float) -> float:
    match environment:
        case BernoulliBanditConfig() | LinearBanditConfig(noise="bernoulli"):
            return 1.0
        case GaussianBanditConfig():
            return GAUSSIAN_REACH * (environment.prior_std + environment.noise_std)
        case LinearBanditConfig():
            root = math.sqrt(environment.dim)
            weights = {"unit_box": root, "sphere": 1.0, "gaussian": root + GAUSSIAN_REACH}[environment.prior]
            reach = GAUSSIAN_REACH if environment.noise == "gaussian" else math.sqrt(3)
            return action_bound * weights + reach * environment.noise_std
