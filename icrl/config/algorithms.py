"""Algorithms of a config: one dataclass each, told apart by `algorithm`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from icrl.config.environments import MDPConfig
from icrl.config.sections import AtLeast, AtMost, NonNegative, Positive, Problem, Section

BANDITS = frozenset({"linear_bandit", "bernoulli_bandit", "gaussian_bandit"})
MDPS = frozenset({"tabular_mdp", "grid_world"})


@dataclass(frozen=True)
class UniformConfig(Section):
    """Plays every action with probability 1/A."""

    algorithm: Literal["uniform"] = "uniform"
    plays: ClassVar[frozenset[str]] = BANDITS | MDPS
    """The kinds of environment that the algorithm plays in."""


@dataclass(frozen=True)
class OptimalConfig(Section):
    """Plays the optimal action of the environment (it may see the environment)."""

    algorithm: Literal["optimal"] = "optimal"
    plays: ClassVar[frozenset[str]] = BANDITS | MDPS


@dataclass(frozen=True)
class EmpiricalMeanConfig(Section):
    """Plays each action once, then the best empirical mean ("Emp" in the paper's figures)."""

    algorithm: Literal["empirical_mean"] = "empirical_mean"
    plays: ClassVar[frozenset[str]] = BANDITS


@dataclass(frozen=True)
class LinUCBConfig(Section):
    """LinUCB: index <a, w_t> + confidence * sqrt(a' A_t^-1 a), A_t = ridge I + sum a a'."""

    algorithm: Literal["linucb"] = "linucb"
    plays: ClassVar[frozenset[str]] = BANDITS
    ridge: Positive = 1.0
    """lambda."""
    confidence: NonNegative = 2.0
    """alpha."""
    temperature: NonNegative = 0.0
    """tau: 0 plays the largest index (hard LinUCB), above 0 plays softmax(index / tau) (soft LinUCB, Thm 8)."""


@dataclass(frozen=True)
class ThompsonConfig(Section):
    """Thompson sampling. Bernoulli bandits: a Beta(1, 1) prior. Linear and Gaussian bandits: w* ~ N(0, prior_variance
    I), rewards with variance noise_variance.
    """

    algorithm: Literal["thompson"] = "thompson"
    plays: ClassVar[frozenset[str]] = BANDITS
    prior_variance: Positive = 1.0
    """lambda of the paper's section 2.3."""
    noise_variance: Positive | None = None
    """r; null takes the environment's own noise_std squared."""


@dataclass(frozen=True)
class EpsilonGreedyConfig(Section):
    """Uniform with probability epsilon, else greedy by empirical mean (each action once first)."""

    algorithm: Literal["epsilon_greedy"] = "epsilon_greedy"
    plays: ClassVar[frozenset[str]] = BANDITS
    epsilon: Annotated[float, AtLeast(0), AtMost(1)] = 0.1


@dataclass(frozen=True)
class UCBConfig(Section):
    """Upper confidence bounds of a multi-armed bandit; N_a plays of action a with mean reward m_a and sum s_a.

    ucb1: m_a + bonus sqrt(2 log n / N_a) after n plays, each action once first. shrunk: s_a / (1 + N_a) + bonus /
    sqrt(1 + N_a), the index that the paper's figures were made with (LinUCB with ridge 1 on unit vectors).
    """

    algorithm: Literal["ucb"] = "ucb"
    plays: ClassVar[frozenset[str]] = frozenset({"bernoulli_bandit", "gaussian_bandit"})
    index: Literal["shrunk", "ucb1"] = "shrunk"
    bonus: NonNegative = 1.0
    """Multiplier of the width."""


@dataclass(frozen=True)
class UCBVIConfig(Section):
    """UCB-VI: Q_h = min(H, r + b + P V_{h+1}), b = bonus 2 H sqrt(log(S A T / delta) / max(N, 1)), delta = 1 / T."""

    algorithm: Literal["ucb_vi"] = "ucb_vi"
    plays: ClassVar[frozenset[str]] = MDPS
    bonus: NonNegative = 1.0
    """Multiplier of the exploration bonus; with 1 nothing but exploration is seen in a few episodes."""
    temperature: NonNegative = 0.0
    """tau: 0 plays the largest Q (hard UCB-VI), above 0 plays softmax(Q / tau) (soft UCB-VI, Thm 12)."""
    unvisited: Literal["formula", "ceiling"] = "formula"
    """Q of a pair without visits. formula: min(H, b), as the equation has it; ceiling: H. They are the same where
    b >= H without visits, as with bonus 1; a small bonus explores only with the ceiling: in the formula a pair without
    visits has no V behind it and looks worse than those visited."""


@dataclass(frozen=True)
class PSRLConfig(Section):
    """Posterior sampling: before each episode an MDP is drawn from the posterior, and its optimal policy played.

    Prior: Dirichlet(1) transitions, Beta(1, 1) mean rewards; the same at every step of an episode where the MDP is.
    """

    algorithm: Literal["psrl"] = "psrl"
    plays: ClassVar[frozenset[str]] = MDPS

    @staticmethod
    def numbers(environment: MDPConfig) -> int:
        """Random numbers of a trajectory, S A (S + 2) a layer made a multiple of 4; a stream has 2**32."""
        layers = 1 if environment.stationary else environment.episode_length
        cells = environment.n_states * environment.n_actions * (environment.n_states + 2)
        return environment.episodes * layers * (cells + -cells % 4)


PlainAlgorithmConfig = (
    UniformConfig
    | OptimalConfig
    | EmpiricalMeanConfig
    | EpsilonGreedyConfig
    | UCBConfig
    | LinUCBConfig
    | ThompsonConfig
    | UCBVIConfig
    | PSRLConfig
)


@dataclass(frozen=True)
class MixtureComponent(Section):
    """One algorithm of a mixture, with its relative weight."""

    algorithm: PlainAlgorithmConfig = field(metadata={"inline": True})
    """Its keys stand beside `weight`, not in a mapping of their own."""
    weight: NonNegative = 1.0


@dataclass(frozen=True)
class MixtureConfig(Section):
    """At every round one component, drawn with the relative weights, acts; all of them see what was played.

    A mixture over whole trajectories is `context` itself.
    """

    algorithm: Literal["mixture"] = "mixture"
    components: tuple[MixtureComponent, ...] = ()

    @property
    def plays(self) -> frozenset[str]:
        """The kinds of environment that all components play in."""
        return frozenset.intersection(BANDITS | MDPS, *(component.algorithm.plays for component in self.components))

    def problems(self) -> Iterator[Problem]:
        """What the bounds cannot say."""
        weights = [component.weight for component in self.components]
        if sum(weights) <= 0:
            yield Problem(
                "components",
                weights,
                "at least one algorithm with a weight above 0",
                "for example components=[{algorithm: thompson}, {algorithm: uniform, weight: 0.5}]",
            )


AlgorithmConfig = (
    UniformConfig
    | OptimalConfig
    | EmpiricalMeanConfig
    | EpsilonGreedyConfig
    | UCBConfig
    | LinUCBConfig
    | ThompsonConfig
    | UCBVIConfig
    | PSRLConfig
    | MixtureConfig
)


@dataclass(frozen=True)
class ContextComponent(Section):
    """One algorithm of the context mixture Alg_0, with its relative weight."""

    algorithm: AlgorithmConfig = field(metadata={"inline": True})
    """Its keys stand beside `weight`, not in a mapping of their own."""
    weight: NonNegative = 1.0
    """Relative weight; a trajectory comes from one component, drawn with these weights."""
