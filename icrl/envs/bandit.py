"""What all bandits share: B of them, their rewards, and a play of T rounds.

Shapes: B environments, A actions, d dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from icrl import streams
from icrl.config import BanditConfig, BernoulliBanditConfig, LinearBanditConfig
from icrl.envs.base import Observation
from icrl.streams import Split, Stream

CHUNK = 64
"""Rounds whose random numbers are drawn at once."""

_SQRT_3 = np.float32(3**0.5)


@dataclass(frozen=True)
class BanditBatch:
    """B environments drawn from the prior. With fresh action sets, those of the first round."""

    index: npt.NDArray[np.int64]
    """int64[B]: global trajectory index."""
    theta: npt.NDArray[np.float32]
    """float32[B, d]: w*; of a multi-armed bandit the means."""
    action_set: npt.NDArray[np.float32]
    """float32[B, A, d]: the actions' features; of a multi-armed bandit the unit vectors."""
    means: npt.NDArray[np.float32]
    """float32[B, A]: expected rewards."""
    optimal_action: npt.NDArray[np.uint8]
    """uint8[B]: the action with the largest mean; the lowest wins ties."""
    clipped: bool = False
    """Whether a mean is clip(<a, w*>, 0, 1), as a linear bandit's with rewards of 0 or 1."""

    @property
    def n_actions(self) -> int:
        """A."""
        return int(self.means.shape[1])


def noise_kind(environment: BanditConfig) -> str:
    """gaussian, bounded or bernoulli."""
    match environment:
        case LinearBanditConfig():
            return environment.noise
        case BernoulliBanditConfig():
            return "bernoulli"
        case _:
            return "gaussian"


def noise(
    environment: BanditConfig, seed: int, split: Split, indices: npt.NDArray[np.int64], first: int, count: int
) -> npt.NDArray[np.float32]:
    """float32[B, count]: what `rewards` takes for rounds first .. first + count - 1, from stream REWARD.

    Standard normals, or uniforms on [0, 1) for bounded and Bernoulli rewards.
    """
    draw = streams.normals if noise_kind(environment) == "gaussian" else streams.uniforms
    return draw(seed, split, Stream.REWARD, indices, count, start=first)


def rewards(
    environment: BanditConfig,
    means: npt.NDArray[np.float32],
    action: npt.NDArray[np.int64],
    noise: npt.NDArray[np.float32],
) -> npt.NDArray[np.float32]:
    """float32[B]: the reward of action int64[B] with means float32[B, A] and `noise` float32[B]; as the kernels do."""
    mean = np.take_along_axis(means, action[:, None], axis=1)[:, 0]
    kind = noise_kind(environment)
    if kind == "bernoulli":
        return (noise < mean).astype(np.float32)
    std = np.float32(getattr(environment, "noise_std"))  # noqa: B009 - a Bernoulli bandit has none
    if kind == "bounded":
        return mean + std * (_SQRT_3 * (np.float32(2) * noise - np.float32(1)))
    return mean + std * noise


class BanditInteraction:
    """A play of B bandits; all algorithms meet the same noise, a function of index and round."""

    def __init__(self, environment: BanditConfig, batch: BanditBatch, seed: int, split: Split) -> None:
        self._environment, self._batch = environment, batch
        self._key = (seed, split)
        self._round = 0
        self._noise = np.empty((0, 0), np.float32)
        self._row = np.arange(len(batch.index))

    def observe(self) -> Observation:
        return None

    def optimal_action(self) -> npt.NDArray[np.uint8]:
        return self._batch.optimal_action

    def suboptimality(self, action: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        means = self._batch.means
        gap: npt.NDArray[np.float32] = means[self._row, self.optimal_action()] - means[self._row, action]
        return gap

    def step(self, action: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        slot = self._round % CHUNK
        if slot == 0:
            count = min(CHUNK, self._environment.horizon - self._round)
            self._noise = noise(self._environment, *self._key, self._batch.index, self._round, count)
        reward = rewards(self._environment, self._batch.means, action, self._noise[:, slot])
        self._round += 1
        return reward
