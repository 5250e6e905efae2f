"""Ridge regression of rewards on actions, kept up to date round by round.

Shapes: B interactions, A actions, d dim.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from icrl.envs import Observation

Float64Array = npt.NDArray[np.float64]


class RidgePosterior:
    """Mean and a square root of A_t^-1, A_t = ridge I + sum_j a_j a_j', w_t = A_t^-1 sum_j a_j r_j.

    Potter's update keeps `root` with root root' = A_t^-1 (it needs no triangular shape) in O(d^2) a round.
    """

    def __init__(self, action_set: npt.NDArray[np.float32], ridge: float) -> None:
        """Prior to any reward; action_set float32[B, A, d]."""
        self.action_set: Float64Array = action_set.astype(np.float64)
        B, _, d = action_set.shape
        self.mean: Float64Array = np.zeros((B, d))
        self.root: Float64Array = np.tile(np.eye(d) / np.sqrt(ridge), (B, 1, 1))
        self._row = np.arange(B)

    def meet(self, observation: Observation) -> None:
        """Another action set float32[B, A, d] from this round on, if one is observed; what is known of w* stays."""
        if observation is not None:
            self.action_set = observation.astype(np.float64)

    def update(self, action: npt.NDArray[np.int64], reward: npt.NDArray[np.float32]) -> None:
        """Condition on reward float32[B] of action int64[B]."""
        x = self.action_set[self._row, action]
        phi = np.einsum("bij,bi->bj", self.root, x)
        gain = 1 / (1 + np.einsum("bi,bi->b", phi, phi))
        direction = np.einsum("bij,bj->bi", self.root, phi)  # A_t^-1 x
        residual = reward - np.einsum("bi,bi->b", x, self.mean)
        self.mean += direction * (gain * residual)[:, None]
        # (1 - sqrt(gain)) / |phi|^2 without the cancellation
        shrink = gain / (1 + np.sqrt(gain))
        self.root -= (direction * shrink[:, None])[:, :, None] * phi[:, None, :]

    def means(self) -> Float64Array:
        """float64[B, A]: <a, w_t>."""
        means: Float64Array = np.einsum("bad,bd->ba", self.action_set, self.mean)
        return means

    def factors(self) -> Float64Array:
        """float64[B, A, d]: rows f_a with <f_a, f_b> = a' A_t^-1 b."""
        return self.action_set @ self.root
