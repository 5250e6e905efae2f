"""Plays the optimal action: the expert of DPT, and the zero line of regret.

Shapes: B interactions, A actions, S states, H steps of an episode.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from icrl.algorithms.base import Algorithm, Draws, one_hot
from icrl.config import OptimalConfig
from icrl.envs import BanditBatch, Batch, MDPBatch, Observation, with_action_set


class Optimal(Algorithm):
    """a* of each environment, which it is shown; in an MDP that of step h and state s_t, h from counting rounds."""

    name = "optimal"

    def __init__(self, config: OptimalConfig) -> None:
        self.config = config

    def reset(self, environments: Batch) -> None:
        assert isinstance(environments, BanditBatch | MDPBatch)
        self._environments = environments
        self._n_actions = environments.n_actions
        if isinstance(environments, BanditBatch):
            self._action = environments.optimal_action.astype(np.int64)
        self._row = np.arange(len(environments.index))
        self._round = 0

    def observe(self, observation: Observation) -> None:
        if isinstance(self._environments, MDPBatch):
            policy = self._environments.optimal_policy
            self._action = policy[self._row, self._round % policy.shape[1], observation].astype(np.int64)
        elif observation is not None and observation.dtype == np.float32:  # fresh actions
            fresh = with_action_set(self._environments, observation.astype(np.float32, copy=False))
            self._action = fresh.optimal_action.astype(np.int64)

    def probabilities(self) -> npt.NDArray[np.float64]:
        return one_hot(self._action, self._n_actions)

    def act(self, draws: Draws) -> npt.NDArray[np.int64]:
        return self._action.copy()

    def update(self, action: npt.NDArray[np.int64], reward: npt.NDArray[np.float32]) -> None:
        self._round += 1
