"""Plays each action once, then greedily by empirical mean ("Emp" in the paper's figures).

Shapes: B interactions, A actions.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from icrl.algorithms.base import Algorithm, Draws, largest, one_hot
from icrl.algorithms.tallies import Tallies
from icrl.config import EmpiricalMeanConfig
from icrl.envs import Batch


class EmpiricalMean(Algorithm):
    """Action t - 1 in round t <= A, then the best mean; the lowest action wins ties."""

    name = "empirical_mean"

    def __init__(self, config: EmpiricalMeanConfig) -> None:
        self.config = config

    def reset(self, environments: Batch) -> None:
        self._tallies = Tallies(environments)

    def probabilities(self) -> npt.NDArray[np.float64]:
        mean = self._tallies.means()
        return one_hot(largest(mean), mean.shape[1])

    def act(self, draws: Draws) -> npt.NDArray[np.int64]:
        return largest(self._tallies.means())

    def update(self, action: npt.NDArray[np.int64], reward: npt.NDArray[np.float32]) -> None:
        self._tallies.update(action, reward)
