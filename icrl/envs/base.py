"""What an environment is to those who play it.

Shapes: B interactions, A actions, d dim.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

Observation = npt.NDArray[np.int64] | npt.NDArray[np.float32] | None
"""s_t. MDPs: int64[B], the states; linear bandits with fresh action sets: float32[B, A, d]; other bandits: None."""


class Batch(Protocol):
    """B environments drawn from a prior."""

    @property
    def index(self) -> npt.NDArray[np.int64]:
        """int64[B]: global trajectory index."""
        ...

    @property
    def n_actions(self) -> int:
        """A."""
        ...


class Interaction(Protocol):
    """B environments in the middle of a play, in lockstep; round t = 1 .. T."""

    def observe(self) -> Observation:
        """s_t, what an algorithm sees before it acts."""
        ...

    def optimal_action(self) -> npt.NDArray[np.uint8]:
        """uint8[B]: the best action in this round; the lowest wins ties."""
        ...

    def suboptimality(self, action: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """float32[B]: what action int64[B] gives away in expectation.

        Bandits: the largest mean less the action's. MDPs: V*_h(s) - Q*_h(s, a), whose sum over an episode has the
        expectation V*(s_1) - V^pi(s_1).
        """
        ...

    def step(self, action: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """float32[B]: the rewards of action int64[B]; the next round begins."""
        ...
