"""Uniform with probability epsilon, else greedy by empirical mean.

Shapes: B interactions, A actions.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from icrl.algorithms.base import Algorithm, Draws, largest, one_hot
from icrl.algorithms.tallies import Tallies
from icrl.config import EpsilonGreedyConfig
from icrl.envs import Batch


class EpsilonGreedy(Algorithm):
    """Probabilities epsilon / A + (1 - epsilon) 1{a is greedy}.

    The greedy action is the lowest unplayed one while there is one, then the best mean (the lowest action wins ties).
    """

    name = "epsilon_greedy"

    def __init__(self, config: EpsilonGreedyConfig) -> None:
        self.config = config

    def reset(self, environments: Batch) -> None:
        self._tallies = Tallies(environments)

    def probabilities(self) -> npt.NDArray[np.float64]:
        mean = self._tallies.means()
        A, epsilon = mean.shape[1], self.config.epsilon
        probabilities: npt.NDArray[np.float64] = epsilon / A + (1 - epsilon) * one_hot(largest(mean), A)
        return probabilities

    def act(self, draws: Draws) -> npt.NDArray[np.int64]:
        """One uniform u decides all: below epsilon it explores, with action floor(u A / epsilon)."""
        mean = self._tallies.means()
        epsilon, per_unit = exploration(self.config.epsilon, mean.shape[1])
        explored = np.minimum((draws.uniform * per_unit).astype(np.int64), mean.shape[1] - 1)
        return np.where(draws.uniform < epsilon, explored, largest(mean))

    def update(self, action: npt.NDArray[np.int64], reward: npt.NDArray[np.float32]) -> None:
        self._tallies.update(action, reward)


def exploration(epsilon: float, n_actions: int) -> tuple[np.float32, np.float32]:
    """(epsilon, A / epsilon) as they meet the 24-bit uniforms: probabilities hold to within 2**-23."""
    return np.float32(epsilon), np.float32(n_actions / epsilon if epsilon > 0 else 0)
