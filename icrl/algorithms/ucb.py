"""Upper confidence bounds of a multi-armed bandit (paper, section 4.2; UCB1 of Auer et al., 2002).

Shapes: B interactions, A actions.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from icrl.algorithms.base import Algorithm, Draws, largest, one_hot
from icrl.algorithms.tallies import Tallies
from icrl.config import UCBConfig
from icrl.envs import Batch


class UCB(Algorithm):
    """Plays the largest index, the lowest action wins ties; N_a plays of action a with sum s_a, n plays in all so far.

    shrunk: s_a / (1 + N_a) + bonus / sqrt(1 + N_a). ucb1: s_a / N_a + bonus sqrt(2 log n / N_a), infinite at N_a = 0.
    """

    name = "ucb"

    def __init__(self, config: UCBConfig) -> None:
        self.config = config

    def reset(self, environments: Batch) -> None:
        self._tallies = Tallies(environments)

    def indices(self) -> npt.NDArray[np.float64]:
        """float64[B, A]."""
        seen = self._tallies
        if self.config.index == "shrunk":
            shrunk: npt.NDArray[np.float64] = seen.sum / (1 + seen.count) + self.config.bonus / np.sqrt(1 + seen.count)
            return shrunk
        width = ucb1_width(seen.rounds) * self.config.bonus / np.sqrt(np.maximum(seen.count, 1))
        bound: npt.NDArray[np.float64] = seen.means() + width
        return bound

    def probabilities(self) -> npt.NDArray[np.float64]:
        index = self.indices()
        return one_hot(largest(index), index.shape[1])

    def act(self, draws: Draws) -> npt.NDArray[np.int64]:
        return largest(self.indices())

    def update(self, action: npt.NDArray[np.int64], reward: npt.NDArray[np.float32]) -> None:
        self._tallies.update(action, reward)


def ucb1_width(plays: int) -> float:
    """sqrt(2 log n) after n plays; 0 before the first."""
    return math.sqrt(2 * math.log(max(plays, 1)))
