"""The shared vocabulary for what an algorithm did.

Shapes: B trajectories, T rounds, S states, H steps of an episode.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class TrajectoryBatch:
    """B trajectories of the context algorithm; `index` regenerates all else from the seed."""

    index: npt.NDArray[np.int64]
    """int64[B]: global trajectory index."""
    action: npt.NDArray[np.uint8]
    """uint8[B, T]: the action played."""
    reward: npt.NDArray[np.float32]
    """float32[B, T]: the reward seen."""
    source: npt.NDArray[np.uint8]
    """uint8[B]: which component of the context mixture produced it."""
    optimal_action: npt.NDArray[np.uint8]
    """The best action: uint8[B] where it is the same in every round, else uint8[B, T]."""
    state: npt.NDArray[np.uint8] | None = None
    """uint8[B, T]: s_t of an MDP."""
    optimal_policy: npt.NDArray[np.uint8] | None = None
    """uint8[B, H, S]: the best action in each state of an MDP at each step of an episode."""

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """What there is by name, but for the index."""
        names = ("action", "reward", "source", "optimal_action", "state", "optimal_policy")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}
