"""LinUCB, hard and soft (paper, section 4.1 and Thm 8).

Shapes: B interactions, A actions, d dim.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from icrl.algorithms.base import Algorithm, Draws, choose, largest, one_hot
from icrl.algorithms.posterior import RidgePosterior
from icrl.config import LinUCBConfig
from icrl.envs import BanditBatch, Batch, Observation


class LinUCB(Algorithm):
    """Index v_a = <a, w_t> + confidence sqrt(a' A_t^-1 a), A_t = ridge I + sum_j a_j a_j'.

    Temperature 0 plays the largest index (the lowest action wins ties), above 0 softmax(v / temperature).
    """

    name = "linucb"

    def __init__(self, config: LinUCBConfig) -> None:
        self.config = config

    def reset(self, environments: Batch) -> None:
        assert isinstance(environments, BanditBatch)
        self._posterior = RidgePosterior(environments.action_set, self.config.ridge)

    def observe(self, observation: Observation) -> None:
        self._posterior.meet(observation)

    def indices(self) -> npt.NDArray[np.float64]:
        """float64[B, A]: the upper confidence bounds v."""
        factors = self._posterior.factors()
        width = np.sqrt(np.einsum("bad,bad->ba", factors, factors))
        index: npt.NDArray[np.float64] = self._posterior.means() + self.config.confidence * width
        return index

    def probabilities(self) -> npt.NDArray[np.float64]:
        index = self.indices()
        if self.config.temperature == 0:
            return one_hot(largest(index), index.shape[1])
        weight = np.exp((index - index.max(axis=1, keepdims=True)) / self.config.temperature)
        probabilities: npt.NDArray[np.float64] = weight / weight.sum(axis=1, keepdims=True)
        return probabilities

    def act(self, draws: Draws) -> npt.NDArray[np.int64]:
        if self.config.temperature == 0:
            return largest(self.indices())
        return choose(self.probabilities(), draws.uniform)

    def update(self, action: npt.NDArray[np.int64], reward: npt.NDArray[np.float32]) -> None:
        self._posterior.update(action, reward)
