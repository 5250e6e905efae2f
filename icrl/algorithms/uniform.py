"""Plays every action with probability 1/A.

Shapes: B interactions, A actions.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from icrl.algorithms.base import Algorithm, Draws
from icrl.config import UniformConfig
from icrl.envs import Batch


class Uniform(Algorithm):
    """The history-free exploration policy."""

    name = "uniform"

    def __init__(self, config: UniformConfig) -> None:
        self.config = config

    def reset(self, environments: Batch) -> None:
        self._shape = (len(environments.index), environments.n_actions)

    def probabilities(self) -> npt.NDArray[np.float64]:
        return np.full(self._shape, 1 / self._shape[1])

    def act(self, draws: Draws) -> npt.NDArray[np.int64]:
        return (draws.uniform * np.float32(self._shape[1])).astype(np.int64)

    def update(self, action: npt.NDArray[np.int64], reward: npt.NDArray[np.float32]) -> None:
        pass
