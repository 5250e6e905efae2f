"""Thompson sampling for Gaussian bandits, whose actions have independent posteriors.

Shapes: B interactions, A actions.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from icrl.algorithms.thompson import Thompson
from icrl.best_arm import gaussian_best


class GaussianThompson(Thompson):
    """Linear Thompson sampling on unit vectors: m_a ~ N(s_a / (N_a + r / lambda), r / (N_a + r / lambda)).

    It plays what `Thompson` plays; its probabilities need no Monte Carlo.
    """

    def probabilities(self) -> npt.NDArray[np.float64]:
        """float64[B, A]: the posterior probability that a is the best action, by quadrature; see `gaussian_best`."""
        factors = self._posterior.factors()
        std = np.sqrt(self.noise_variance * np.einsum("bad,bad->ba", factors, factors))
        return gaussian_best(self._posterior.means(), std)

    def standard_error(self, probabilities: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """float64[B, A]: 0."""
        return np.zeros_like(probabilities)
