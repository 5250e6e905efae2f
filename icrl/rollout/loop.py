"""The general loop: any `Algorithm` against the linear bandit, B interactions in lockstep.

Shapes: B interactions, T rounds, d dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from icrl import envs, streams
from icrl.algorithms import Algorithm, Draws
from icrl.config.schema import LinearBanditConfig
from icrl.streams import Split, Stream

CHUNK = 64
"""Rounds whose random numbers are drawn at once."""


@dataclass(frozen=True)
class Play:
    """What an algorithm did in B environments."""

    action: npt.NDArray[np.uint8]
    """uint8[B, T]."""
    reward: npt.NDArray[np.float32]
    """float32[B, T]."""
    suboptimality: npt.NDArray[np.float32]
    """float32[B, T]: <a* - a_t, w*>, free of noise; its cumulative sum is the regret."""


def play(
    environment: LinearBanditConfig, algorithm: Algorithm, seed: int, split: Split, indices: npt.NDArray[np.int64]
) -> Play:
    """T rounds of `algorithm` in the environments of these indices.

    Environments, reward noise (a function of index and round) and the algorithm's draws are those of
    `icrl.rollout.generate`: all algorithms meet the same environments and the same noise.
    """
    index = streams.checked_indices(indices)
    batch = envs.sample(environment, seed, split, index)
    B, T, d = index.size, environment.horizon, environment.dim
    row = np.arange(B)
    best = batch.means[row, batch.optimal_action]
    action, reward = np.empty((B, T), np.uint8), np.empty((B, T), np.float32)
    suboptimality = np.empty((B, T), np.float32)
    algorithm.reset(batch)
    for first in range(0, T, CHUNK):
        count = min(CHUNK, T - first)
        noise = streams.normals(seed, split, Stream.REWARD, index, count, start=first)
        uniform = streams.uniforms(seed, split, Stream.ALGORITHM, index, count, start=first)
        normal = streams.normals(seed, split, Stream.ALGORITHM, index, count * d, start=first * d)
        normal = normal.reshape(B, count, d)
        for t in range(count):
            chosen = algorithm.act(Draws(uniform=uniform[:, t], normal=normal[:, t]))
            seen = envs.rewards(environment, batch, chosen, noise[:, t])
            algorithm.update(chosen, seen)
            action[:, first + t] = chosen
            reward[:, first + t] = seen
            suboptimality[:, first + t] = best - batch.means[row, chosen]
    return Play(action=action, reward=reward, suboptimality=suboptimality)
