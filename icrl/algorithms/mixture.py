"""A mixture at step level: every round one component acts, and all of them see what it did.

Shapes: B interactions, A actions.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from icrl.algorithms.base import Algorithm, Draws
from icrl.config import MixtureConfig
from icrl.envs import Batch, Observation


class Mixture(Algorithm):
    """Probabilities sum_c w_c p_c(a) with the components' relative weights w, made to sum to 1.

    The component of a round is drawn apart from all else, so components may share their own random numbers: of those
    only one's are acted on. All components act in every round, whoever is chosen: one that plans for a whole episode
    must be asked at its start.
    """

    name = "mixture"

    def __init__(self, config: MixtureConfig, components: list[Algorithm]) -> None:
        """`components`: those of the config, built, in its order."""
        self.config = config
        weights = np.array([component.weight for component in config.components])
        kept = np.flatnonzero(weights > 0)
        self._components = [components[i] for i in kept]
        self._cumulative = np.cumsum(weights[kept])

    @property
    def weights(self) -> npt.NDArray[np.float64]:
        """float64[C]: of the components whose weight is above 0, summing to 1."""
        weights: npt.NDArray[np.float64] = np.diff(self._cumulative, prepend=0.0) / self._cumulative[-1]
        return weights

    def resample(self) -> bool:
        return sum(component.resample() for component in self._components) > 0

    def reset(self, environments: Batch) -> None:
        self._row = np.arange(len(environments.index))
        for component in self._components:
            component.reset(environments)

    def observe(self, observation: Observation) -> None:
        for component in self._components:
            component.observe(observation)

    def probabilities(self) -> npt.NDArray[np.float64]:
        every = np.stack([component.probabilities() for component in self._components])
        mixed: npt.NDArray[np.float64] = np.einsum("c,cba->ba", self.weights, every)
        return mixed

    def act(self, draws: Draws) -> npt.NDArray[np.int64]:
        every = np.stack([component.act(draws) for component in self._components])
        place = draws.component.astype(np.float64) * self._cumulative[-1]
        acting = np.searchsorted(self._cumulative, place, side="right")
        action: npt.NDArray[np.int64] = every[acting, self._row]
        return action

    def update(self, action: npt.NDArray[np.int64], reward: npt.NDArray[np.float32]) -> None:
        for component in self._components:
            component.update(action, reward)
