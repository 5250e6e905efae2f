"""What the algorithms of multi-armed bandits remember: how often each action was played, and its rewards' sum.

Shapes: B interactions, A actions.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from icrl.envs import BanditBatch, Batch


class Tallies:
    """N_a and s_a of B interactions."""

    def __init__(self, environments: Batch) -> None:
        """Prior to any reward."""
        assert isinstance(environments, BanditBatch)
        self.sum = np.zeros(environments.means.shape)
        """float64[B, A]: s_a."""
        self.count = np.zeros(environments.means.shape, np.int64)
        """int64[B, A]: N_a."""
        self.rounds = 0
        """Plays so far."""
        self._row = np.arange(len(environments.means))

    def update(self, action: npt.NDArray[np.int64], reward: npt.NDArray[np.float32]) -> None:
        """Count reward float32[B] of action int64[B]."""
        self.sum[self._row, action] += reward
        self.count[self._row, action] += 1
        self.rounds += 1

    def means(self) -> npt.NDArray[np.float64]:
        """float64[B, A]: s_a / N_a; infinite where N_a = 0, so that the lowest unplayed action is the best."""
        mean = np.full(self.sum.shape, np.inf)
        np.divide(self.sum, self.count, out=mean, where=self.count > 0)
        return mean
