"""Rollouts: compiled generation of the context's trajectories, and the general loop that plays any algorithm.

Algorithms know nothing of rollouts. Whatever is played, environment and noise of a trajectory depend on
(seed, split, index) alone.
"""

from __future__ import annotations

from typing import assert_never

import numpy as np
import numpy.typing as npt

from icrl import streams
from icrl.algorithms import noise_variance
from icrl.config.schema import (
    AlgorithmConfig,
    ContextComponent,
    EmpiricalMeanConfig,
    LinearBanditConfig,
    LinUCBConfig,
    OptimalConfig,
    ThompsonConfig,
    UniformConfig,
)
from icrl.rollout import kernels, lanes
from icrl.streams import Split, Stream
from icrl.trajectory import TrajectoryBatch

__all__ = ["generate"]


def generate(
    environment: LinearBanditConfig,
    context: tuple[ContextComponent, ...],
    seed: int,
    split: Split,
    indices: npt.NDArray[np.int64],
) -> TrajectoryBatch:
    """The context's trajectories with these indices, B of them: one component each, drawn with the relative weights.

    A trajectory is a function of (environment, context, seed, split, its index): any order and any partition of the
    indices gives the same bytes. Compiled, and holds no GIL: threads and processes may share the work.
    """
    index = streams.checked_indices(indices)
    B, T = index.size, environment.horizon
    source = components(context, seed, split, index)
    action, reward = np.empty((B, T), np.uint8), np.empty((B, T), np.float32)
    optimal_action = np.empty(B, np.uint8)
    key = np.array([*streams.key_words(seed), streams.tag_word(split, Stream(0), 0)], np.uint64)
    workspace = lanes.workspace(environment.n_actions, environment.dim)
    for number in np.unique(source):
        rows = np.flatnonzero(source == number)
        kind, parameters = _kernel_arguments(context[number].algorithm, environment)
        kernels.rollout(
            kind,
            (None,) * environment.dim,
            environment.n_actions,
            parameters,
            key,
            index[rows],
            rows,
            workspace,
            action,
            reward,
            optimal_action,
        )
    return TrajectoryBatch(index=index, action=action, reward=reward, optimal_action=optimal_action, source=source)


def components(
    context: tuple[ContextComponent, ...], seed: int, split: Split, indices: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint8]:
    """uint8[B]: the component of the mixture behind each index, by inverse CDF at its uniform of stream MIXTURE."""
    cumulative = np.cumsum([component.weight for component in context])
    u = streams.uniforms(seed, split, Stream.MIXTURE, indices, 1)[:, 0]
    component: npt.NDArray[np.int64] = np.searchsorted(cumulative, u * cumulative[-1], side="right")
    return component.astype(np.uint8)


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
            assert_never(algorithm)
    return kind, np.array([environment.noise_std, scale, weight, sharpness], np.float32)
