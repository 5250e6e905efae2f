"""Which linear bandits the compiled rollouts play, and how they are called."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from icrl import streams
from icrl.algorithms import noise_variance
from icrl.config import (
    AlgorithmConfig,
    EmpiricalMeanConfig,
    LinearBanditConfig,
    LinUCBConfig,
    OptimalConfig,
    ThompsonConfig,
    UniformConfig,
)
from icrl.rollout import fresh, kernels, lanes
from icrl.streams import Split, Stream
from icrl.trajectory import TrajectoryBatch

PRIORS = {"unit_box": lanes.UNIT_BOX, "gaussian": lanes.GAUSSIAN, "sphere": lanes.SPHERE}
LAWS = {"gaussian": lanes.NORMAL, "bounded": lanes.BOUNDED, "bernoulli": lanes.BERNOULLI}


def plays(environment: LinearBanditConfig, algorithm: AlgorithmConfig) -> bool:
    """Whether the compiled rollout knows both."""
    fixed = environment.action_set == "fixed"
    known = UniformConfig | OptimalConfig | LinUCBConfig | ThompsonConfig
    return isinstance(algorithm, known) or (fixed and isinstance(algorithm, EmpiricalMeanConfig))


def fill(
    environment: LinearBanditConfig,
    algorithm: AlgorithmConfig,
    seed: int,
    split: Split,
    rows: npt.NDArray[np.int64],
    out: TrajectoryBatch,
) -> None:
    """Play these rows of `out` and fill in action, reward and optimal action."""
    key = np.array([*streams.key_words(seed), streams.tag_word(split, Stream(0), 0)], np.uint64)
    kind, parameters = _kernel_arguments(algorithm, environment)
    rollout = kernels.rollout if environment.action_set == "fixed" else fresh.rollout
    rollout(
        kind,
        PRIORS[environment.prior],
        LAWS[environment.noise],
        (np.float32(0),) * environment.dim,
        environment.n_actions,
        parameters,
        key,
        out.index[rows],
        rows,
        lanes.workspace(environment.n_actions, environment.dim),
        out.action,
        out.reward,
        out.optimal_action,
    )


def _kernel_arguments(
    algorithm: AlgorithmConfig, environment: LinearBanditConfig
) -> tuple[int, npt.NDArray[np.float32]]:
    """The kernel's name for an algorithm, and (noise_std, 1 / sqrt(ridge), weight of the width, 1 / temperature)."""
    scale, weight, sharpness = 1.0, 0.0, 1.0
    match algorithm:
        case UniformConfig():
            kind = kernels.PLAY_UNIFORM
        case OptimalConfig():
            kind = kernels.PLAY_OPTIMAL
        case EmpiricalMeanConfig():
            kind = kernels.PLAY_EMPIRICAL_MEAN
        case LinUCBConfig():
            scale, weight = algorithm.ridge**-0.5, algorithm.confidence
            if algorithm.temperature == 0:
                kind = kernels.PLAY_LINUCB
            else:
                kind, sharpness = kernels.PLAY_SOFT_LINUCB, 1 / algorithm.temperature
        case ThompsonConfig():
            variance = noise_variance(algorithm, environment)
            kind, scale, weight = kernels.PLAY_THOMPSON, (algorithm.prior_variance / variance) ** 0.5, variance**0.5
        case _:
            raise AssertionError(f"{algorithm.algorithm}: `plays` said that there is a kernel")
    return kind, np.array([environment.noise_std, scale, weight, sharpness], np.float32)
