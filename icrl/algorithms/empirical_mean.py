"""Plays each action once, then greedily by empirical mean ("Emp" in the paper's figures).

Shapes: B interactions, A actions.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from icrl.algorithms.base import Algorithm, Draws, largest, one_hot
from icrl.config import EmpiricalMeanConfig
from icrl.envs import BanditBatch, Batch


class EmpiricalMean(Algorithm):
    """Action t - 1 in round t <= A, then the best mean; the lowest action wins ties."""

    name = "empirical_mean"

    def __init__(self, config: EmpiricalMeanConfig) -> None:
        self.config = config

    def reset(self, environments: Batch) -> None:
        assert isinstance(environments, BanditBatch)
        self._sum = np.zeros(environments.means.shape)
        self._count = np.zeros(environments.means.shape, np.int64)
        self._n_actions = environments.means.shape[1]
        self._row = np.arange(len(environments.means))

    def _greedy(self) -> npt.NDArray[np.int64]:
        mean = np.full(self._sum.shape, np.inf)
        np.divide(self._sum, self._count, out=mean, where=self._count > 0)
        return largest(mean)

    def probabilities(self) -> npt.NDArray[np.float64]:
        return one_hot(self._greedy(), self._n_actions)

    def act(self, draws: Draws) -> npt.NDArray[np.int64]:
        return self._greedy()

    def update(self, action: npt.NDArray[np.int64], reward: npt.NDArray[np.float32]) -> None:
        self._sum[self._row, action] += reward
        self._count[self._row, action] += 1
