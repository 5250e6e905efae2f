"""The shared vocabulary for what an algorithm did.

Shapes: B trajectories, T rounds.
"""

from __future__ import annotations

from dataclasses import dataclass

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
    optimal_action: npt.NDArray[np.uint8]
    """uint8[B]: a* of the environment."""
    source: npt.NDArray[np.uint8]
    """uint8[B]: which component of the context mixture produced it."""
