"""Which multi-armed bandits the compiled rollout plays, and how it is called."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from icrl import streams
from icrl.algorithms import noise_variance
from icrl.algorithms.epsilon_greedy import exploration
from icrl.algorithms.ucb import ucb1_width
from icrl.config import (
    AlgorithmConfig,
    BernoulliBanditConfig,
    EmpiricalMeanConfig,
    EpsilonGreedyConfig,
    GaussianBanditConfig,
    MultiArmedConfig,
    OptimalConfig,
    ThompsonConfig,
    UCBConfig,
    UniformConfig,
)
from icrl.rollout import arm_kernels
from icrl.streams import Split, Stream
from icrl.trajectory import TrajectoryBatch


def plays(algorithm: AlgorithmConfig) -> bool:
    """Whether the compiled rollout knows it; it knows both kinds of environment."""
    known = UniformConfig | OptimalConfig | EmpiricalMeanConfig | EpsilonGreedyConfig | UCBConfig | ThompsonConfig
    return isinstance(algorithm, known)


def fill(
    environment: MultiArmedConfig,
    algorithm: AlgorithmConfig,
    seed: int,
    split: Split,
    rows: npt.NDArray[np.int64],
    out: TrajectoryBatch,
) -> None:
    """Play these rows of `out` and fill in action, reward and optimal action."""
    key = np.array([*streams.key_words(seed), streams.tag_word(split, Stream(0), 0)], np.uint64)
    call = _kernel_arguments(algorithm, environment)
    law, stds = arm_kernels.BERNOULLI, (0.0, 0.0)
    if isinstance(environment, GaussianBanditConfig):
        law, stds = arm_kernels.GAUSSIAN, (environment.prior_std, environment.noise_std)
    arm_kernels.rollout(
        call.kind,
        law,
        environment.n_actions,
        np.array([*stds, call.ridge, call.weight, *call.exploration], np.float32),
        call.confidence,
        key,
        out.index[rows],
        rows,
        arm_kernels.workspace(environment.n_actions),
        out.action,
        out.reward,
        out.optimal_action,
    )


@dataclass(frozen=True)
class _Call:
    """What the kernel needs to know of an algorithm; see there."""

    kind: int
    ridge: float = 0.0
    weight: float = 0.0
    exploration: tuple[np.float32, np.float32] = (np.float32(0), np.float32(0))
    confidence: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    """float32[T]: c_t."""


def _kernel_arguments(algorithm: AlgorithmConfig, environment: MultiArmedConfig) -> _Call:
    T = environment.horizon
    match algorithm:
        case UniformConfig():
            return _Call(arm_kernels.PLAY_UNIFORM)
        case OptimalConfig():
            return _Call(arm_kernels.PLAY_OPTIMAL)
        case EmpiricalMeanConfig():
            return _Call(arm_kernels.PLAY_INDEX, confidence=np.zeros(T, np.float32))
        case EpsilonGreedyConfig():
            return _Call(
                arm_kernels.PLAY_EPSILON_GREEDY, exploration=exploration(algorithm.epsilon, environment.n_actions)
            )
        case UCBConfig() if algorithm.index == "shrunk":
            return _Call(arm_kernels.PLAY_INDEX, 1.0, algorithm.bonus, confidence=np.ones(T, np.float32))
        case UCBConfig():
            widths = np.array([ucb1_width(t) for t in range(T)], np.float32)
            return _Call(arm_kernels.PLAY_INDEX, 0.0, algorithm.bonus, confidence=widths)
        case ThompsonConfig() if isinstance(environment, BernoulliBanditConfig):
            return _Call(arm_kernels.PLAY_BETA_THOMPSON)
        case ThompsonConfig():
            variance = noise_variance(algorithm, environment)
            return _Call(arm_kernels.PLAY_GAUSSIAN_THOMPSON, variance / algorithm.prior_variance, variance**0.5)
        case _:
            raise AssertionError(f"{algorithm.algorithm}: `plays` said that there is a kernel")
