"""Draws that a test chooses itself."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from icrl.algorithms import StreamDraws
from icrl.streams import Split


class FixedDraws(StreamDraws):
    """These uniforms float32[B] and, if they are asked for, these normals float32[B, count]."""

    def __init__(self, uniform: npt.NDArray[np.float32], normal: npt.NDArray[np.float32] | None = None) -> None:
        super().__init__(0, Split.TEST, np.arange(len(uniform)))
        self._uniform, self._normal = uniform, normal

    @property
    def uniform(self) -> npt.NDArray[np.float32]:
        return self._uniform

    def normals(self, count: int) -> npt.NDArray[np.float32]:
        assert self._normal is not None
        assert self._normal.shape[1] == count
        return self._normal
