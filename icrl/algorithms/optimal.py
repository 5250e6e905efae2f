"""Plays the optimal action: the expert of DPT, and the zero line of regret.

Shapes: B interactions, A actions.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from icrl.algorithms.base import Algorithm, Draws, one_hot
from icrl.config import OptimalConfig
from icrl.envs import BanditBatch, Batch, Observation, with_action_set


class Optimal(Algorithm):
    """a* of each environment, which it is shown."""

    name = "optimal"

    def __init__(self, config: OptimalConfig) -> None:
        self.config = config

    def reset(self, environments: Batch) -> None:
        assert isinstance(environments, BanditBatch)
        self._action = environments.optimal_action.astype(np.int64)
        self._n_actions = environments.means.shape[1]
        self._environments = environments

    def observe(self, observation: Observation) -> None:
        if observation is not None and observation.dtype == np.float32:  # fresh actions
            fresh = with_action_set(self._environments, observation.astype(np.float32, copy=False))
            self._action = fresh.optimal_action.astype(np.int64)

    def probabilities(self) -> npt.NDArray[np.float64]:
        return one_hot(self._action, self._n_actions)

    def act(self, draws: Draws) -> npt.NDArray[np.int64]:
        return self._action.copy()

    def update(self, action: npt.NDArray[np.int64], reward: npt.NDArray[np.float32]) -> None:
        pass
