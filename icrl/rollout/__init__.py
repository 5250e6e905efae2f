"""Rollouts: generation of the context's trajectories, compiled where it matters, and the general loop that plays any
algorithm.

Algorithms know nothing of rollouts. Whatever is played, environment and noise of a trajectory depend on
(seed, split, index) alone.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from icrl import streams
from icrl.config import (
    AlgorithmConfig,
    BernoulliBanditConfig,
    ContextComponent,
    EnvironmentConfig,
    GaussianBanditConfig,
    GridWorldConfig,
    LinearBanditConfig,
    TabularMDPConfig,
)
from icrl.rollout import arms, linear, looped, mdp
from icrl.streams import Split, Stream
from icrl.trajectory import TrajectoryBatch

__all__ = ["blank", "compiled", "generate"]


def generate(
    environment: EnvironmentConfig,
    context: tuple[ContextComponent, ...],
    seed: int,
    split: Split,
    indices: npt.NDArray[np.int64],
) -> TrajectoryBatch:
    """The context's trajectories with these indices, B of them: one component each, drawn with the relative weights.

    A trajectory is a function of (environment, context, seed, split, its index): any order and any partition of the
    indices gives the same bytes. Where it is compiled it holds no GIL: threads and processes may share the work.
    """
    index = streams.checked_indices(indices)
    out = blank(environment, index, components(context, seed, split, index))
    for number in np.unique(out.source):
        rows = np.flatnonzero(out.source == number)
        algorithm = context[number].algorithm
        if isinstance(environment, LinearBanditConfig) and linear.plays(environment, algorithm):
            linear.fill(environment, algorithm, seed, split, rows, out)
        elif isinstance(environment, BernoulliBanditConfig | GaussianBanditConfig) and arms.plays(algorithm):
            arms.fill(environment, algorithm, seed, split, rows, out)
        elif isinstance(environment, TabularMDPConfig | GridWorldConfig) and mdp.plays(environment, algorithm):
            mdp.fill(environment, algorithm, seed, split, rows, out)
        else:
            looped.fill(environment, algorithm, seed, split, rows, out)
    return out


def compiled(environment: EnvironmentConfig, algorithm: AlgorithmConfig) -> bool:
    """Whether there is a compiled rollout; others are played by the general loop, some hundred times slower."""
    if isinstance(environment, LinearBanditConfig):
        return linear.plays(environment, algorithm)
    if isinstance(environment, TabularMDPConfig | GridWorldConfig):
        return mdp.plays(environment, algorithm)
    return arms.plays(algorithm)


def blank(
    environment: EnvironmentConfig, index: npt.NDArray[np.int64], source: npt.NDArray[np.uint8]
) -> TrajectoryBatch:
    """Arrays of the right shapes for these trajectories, yet to be filled."""
    B, T = index.size, environment.horizon
    fresh = isinstance(environment, LinearBanditConfig) and environment.action_set == "fresh"
    state = policy = None
    if isinstance(environment, TabularMDPConfig | GridWorldConfig):
        state = np.empty((B, T), np.uint8)
        policy = np.empty((B, environment.episode_length, environment.n_states), np.uint8)
    return TrajectoryBatch(
        index=index,
        action=np.empty((B, T), np.uint8),
        reward=np.empty((B, T), np.float32),
        source=source,
        optimal_action=np.empty((B, T) if fresh or state is not None else B, np.uint8),
        state=state,
        optimal_policy=policy,
    )


def components(
    context: tuple[ContextComponent, ...], seed: int, split: Split, indices: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint8]:
    """uint8[B]: the component of the mixture behind each index, by inverse CDF at its uniform of stream MIXTURE."""
    cumulative = np.cumsum([component.weight for component in context])
    u = streams.uniforms(seed, split, Stream.MIXTURE, indices, 1)[:, 0]
    component: npt.NDArray[np.int64] = np.searchsorted(cumulative, u * cumulative[-1], side="right")
    return component.astype(np.uint8)
