"""Environments of a config: one dataclass a kind, told apart by `kind`.

Every kind has `n_actions` and `horizon`; bandits also have `dim`, the dimension of an action's features.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from icrl.config.sections import AtLeast, AtMost, NonNegative, Positive, Problem, Section

_Actions = Annotated[int, AtLeast(2), AtMost(255)]
_Rounds = Annotated[int, AtLeast(1), AtMost(10**5)]


@dataclass(frozen=True)
class LinearBanditConfig(Section):
    """Stochastic linear bandit: r_t = <a_t, w*> + noise, actions from a finite set (paper, section 4.1)."""

    implied: ClassVar[bool] = True
    kind: Literal["linear_bandit"] = "linear_bandit"
    dim: Annotated[int, AtLeast(1), AtMost(64)] = 5
    """d, the dimension of an action."""
    n_actions: _Actions = 10
    """A, the number of actions in the action set."""
    horizon: _Rounds = 200
    """T, the number of rounds."""
    noise_std: NonNegative = 1.5
    """sigma, the standard deviation of the reward noise; noise bernoulli has none of its own."""
    prior: Literal["unit_box", "gaussian", "sphere"] = "unit_box"
    """The prior over w*: unit_box is Unif[0, 1]^d, gaussian N(0, I), sphere uniform on |w| = 1."""
    action_set: Literal["fixed", "fresh"] = "fixed"
    """fixed: one set per environment; fresh: a new one every round. Actions are drawn from Unif[-1, 1]^d."""
    noise: Literal["gaussian", "bounded", "bernoulli"] = "gaussian"
    """gaussian: N(0, noise_std^2); bounded: uniform with that standard deviation; bernoulli: the reward is 0 or 1 with
    mean clip(<a, w*>, 0, 1)."""


@dataclass(frozen=True)
class BernoulliBanditConfig(Section):
    """Multi-armed bandit: the reward of action a is 1 with probability p_a ~ Unif[0, 1], else 0 (section 4.2)."""

    kind: Literal["bernoulli_bandit"] = "bernoulli_bandit"
    n_actions: _Actions = 5
    """A."""
    horizon: _Rounds = 200
    """T, the number of rounds."""

    @property
    def dim(self) -> int:
        """d = A: action a is the a-th unit vector."""
        return self.n_actions


@dataclass(frozen=True)
class GaussianBanditConfig(Section):
    """Multi-armed bandit with Gaussian rewards: means m_a ~ N(0, prior_std^2), rewards N(m_a, noise_std^2)."""

    kind: Literal["gaussian_bandit"] = "gaussian_bandit"
    n_actions: _Actions = 5
    """A."""
    horizon: _Rounds = 200
    """T, the number of rounds."""
    noise_std: NonNegative = 1.0
    """sigma, the standard deviation of the reward noise."""
    prior_std: Positive = 1.0
    """The standard deviation of the means."""

    @property
    def dim(self) -> int:
        """d = A: action a is the a-th unit vector."""
        return self.n_actions


@dataclass(frozen=True)
class TabularMDPConfig(Section):
    """Finite-horizon tabular MDP: K episodes of H steps in one environment; rounds are the T = K H steps."""

    kind: Literal["tabular_mdp"] = "tabular_mdp"
    n_states: Annotated[int, AtLeast(1), AtMost(255)] = 10
    """S."""
    n_actions: _Actions = 5
    """A."""
    episode_length: Annotated[int, AtLeast(1), AtMost(1000)] = 10
    """H."""
    episodes: _Rounds = 20
    """K."""
    stationary: bool = True
    """Whether transitions and rewards are the same at every step h of an episode."""
    reward: Literal["dense", "sparse"] = "dense"
    """dense: every mean r(s, a) ~ Unif[0, 1]; sparse: 1 in one goal state, uniform over the states, and 0 elsewhere."""
    reward_noise: Literal["none", "bernoulli"] = "bernoulli"
    """none: the reward is its mean; bernoulli: 1 with the mean as probability, else 0."""
    start: Literal["fixed", "random"] = "fixed"
    """fixed: every episode starts in state 0; random: uniformly over the states."""

    @property
    def horizon(self) -> int:
        """T = K H."""
        return self.episodes * self.episode_length

    def problems(self) -> Iterator[Problem]:
        """What the bounds cannot say."""
        yield from _rounds_problems(self.episodes, self.episode_length)


@dataclass(frozen=True)
class GridWorldConfig(Section):
    """Dark Room: a square of rooms, a hidden goal, reward 1 for being in it; a tabular MDP with known moves.

    Actions: 0 stays, 1 up, 2 down, 3 left, 4 right; a move into a wall stays. State s = row * side + column.
    """

    kind: Literal["grid_world"] = "grid_world"
    side: Annotated[int, AtLeast(2), AtMost(15)] = 10
    """Rooms along an edge; S = side^2."""
    episode_length: Annotated[int, AtLeast(1), AtMost(1000)] = 20
    """H."""
    episodes: _Rounds = 20
    """K."""
    start: Literal["fixed", "random"] = "fixed"
    """fixed: every episode starts in the middle room; random: uniformly over the rooms."""

    @property
    def n_states(self) -> int:
        """S = side^2."""
        return self.side**2

    @property
    def n_actions(self) -> int:
        """A = 5."""
        return 5

    @property
    def stationary(self) -> bool:
        """Moves and goal are the same at every step."""
        return True

    @property
    def horizon(self) -> int:
        """T = K H."""
        return self.episodes * self.episode_length

    def problems(self) -> Iterator[Problem]:
        """What the bounds cannot say."""
        yield from _rounds_problems(self.episodes, self.episode_length)


def _rounds_problems(episodes: int, episode_length: int) -> Iterator[Problem]:
    if episodes * episode_length > 10**5:
        yield Problem("episodes", episodes, f"at most {10**5 // episode_length} of {episode_length} steps each")


MultiArmedConfig = BernoulliBanditConfig | GaussianBanditConfig
BanditConfig = LinearBanditConfig | MultiArmedConfig
MDPConfig = TabularMDPConfig | GridWorldConfig
EnvironmentConfig = (
    LinearBanditConfig | BernoulliBanditConfig | GaussianBanditConfig | TabularMDPConfig | GridWorldConfig
)
