"""The general loop: any `Algorithm` in any environment, B interactions in lockstep.

Shapes: B interactions, T rounds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from icrl import envs, streams
from icrl.algorithms import Algorithm, StreamDraws
from icrl.config import EnvironmentConfig
from icrl.streams import Split


@dataclass(frozen=True)
class Play:
    """What an algorithm did in B environments."""

    action: npt.NDArray[np.uint8]
    """uint8[B, T]."""
    reward: npt.NDArray[np.float32]
    """float32[B, T]."""
    suboptimality: npt.NDArray[np.float32]
    """float32[B, T]: free of noise (`icrl.envs.Interaction`); its cumulative sum is the regret."""
    optimal_action: npt.NDArray[np.uint8]
    """uint8[B, T]: the best action of each round."""
    state: npt.NDArray[np.uint8] | None
    """uint8[B, T]: the state of each round, for MDPs."""


def play(
    environment: EnvironmentConfig, algorithm: Algorithm, seed: int, split: Split, indices: npt.NDArray[np.int64]
) -> Play:
    """T rounds of `algorithm` in the environments of these indices.

    Environments, noise (a function of index and round) and the algorithm's draws are those of
    `icrl.rollout.generate`: all algorithms meet the same environments and the same noise.
    """
    index = streams.checked_indices(indices)
    batch = envs.sample(environment, seed, split, index)
    interaction = envs.interact(environment, batch, seed, split)
    B, T = index.size, environment.horizon
    action, reward = np.empty((B, T), np.uint8), np.empty((B, T), np.float32)
    suboptimality, optimal = np.empty((B, T), np.float32), np.empty((B, T), np.uint8)
    state = np.empty((B, T), np.uint8) if isinstance(batch, envs.MDPBatch) else None
    draws = StreamDraws(seed, split, index)
    algorithm.reset(batch)
    for t in range(T):
        observation = interaction.observe()
        if state is not None and observation is not None:
            state[:, t] = observation
        algorithm.observe(observation)
        draws.round = t
        chosen = algorithm.act(draws)
        suboptimality[:, t] = interaction.suboptimality(chosen)
        optimal[:, t] = interaction.optimal_action()
        reward[:, t] = interaction.step(chosen)
        algorithm.update(chosen, reward[:, t])
        action[:, t] = chosen
    return Play(action, reward, suboptimality, optimal, state)
