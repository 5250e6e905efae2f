"""Thompson sampling for Bernoulli bandits with a Beta(1, 1) prior on every mean (paper, section 4.2).

Shapes: B interactions, A actions, n nodes of a quadrature.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

from icrl.algorithms.base import Algorithm, Draws, largest
from icrl.algorithms.tallies import Tallies
from icrl.best_arm import BetaBest
from icrl.config import BernoulliBanditConfig, ThompsonConfig
from icrl.envs import Batch


class BetaThompson(Algorithm):
    """Plays argmax_a p_a for p_a ~ Beta(1 + s_a, 1 + N_a - s_a); rewards are 0 or 1."""

    name = "thompson"

    def __init__(self, config: ThompsonConfig, environment: BernoulliBanditConfig) -> None:
        self.config = config
        self._size = environment.n_actions, environment.horizon

    def reset(self, environments: Batch) -> None:
        self._tallies = Tallies(environments)

    def parameters(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """float64[B, A] each: the posterior's two parameters."""
        return 1 + self._tallies.sum, 1 + self._tallies.count - self._tallies.sum

    def probabilities(self) -> npt.NDArray[np.float64]:
        """float64[B, A]: the posterior probability that a is the best action, by quadrature; see `BetaBest`."""
        a, b = self.parameters()
        return _quadrature(*self._size).probabilities(a - 1, b - 1)

    def act(self, draws: Draws) -> npt.NDArray[np.int64]:
        a, b = self.parameters()
        return largest(draws.betas(a.astype(np.float32), b.astype(np.float32)).astype(np.float64))

    def update(self, action: npt.NDArray[np.int64], reward: npt.NDArray[np.float32]) -> None:
        self._tallies.update(action, reward)


@functools.lru_cache(maxsize=4)
def _quadrature(n_actions: int, rounds: int) -> BetaBest:
    return BetaBest(n_actions, rounds)
