"""What an algorithm is: a batched policy over B interactions that run in lockstep.

Shapes: B interactions, A actions, d dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from icrl.envs import LinearBanditBatch


@dataclass(frozen=True)
class Draws:
    """The random numbers an algorithm may use in one round: a function of (seed, split, index, round) only."""

    uniform: npt.NDArray[np.float32]
    """float32[B] on [0, 1): stream ALGORITHM, uniform number t of the trajectory."""
    normal: npt.NDArray[np.float32]
    """float32[B, d]: stream ALGORITHM, normals t d .. t d + d - 1 of the trajectory."""


class Algorithm(Protocol):
    """Alg(. | D_{t-1}, s_t), for B interactions at once; the pretrained transformer is one too."""

    name: str

    def reset(self, environments: LinearBanditBatch) -> None:
        """Start B fresh interactions; an algorithm sees the action sets and nothing else (only `optimal` does)."""

    def probabilities(self) -> npt.NDArray[np.float64]:
        """float64[B, A]: the distribution of the next action given the history."""
        ...

    def act(self, draws: Draws) -> npt.NDArray[np.int64]:
        """int64[B]: the actions of this round."""
        ...

    def update(self, action: npt.NDArray[np.int64], reward: npt.NDArray[np.float32]) -> None:
        """Append (action int64[B], reward float32[B]) to the history."""


def largest(values: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """int64[B]: argmax of float64[B, A]; the lowest action wins ties."""
    action: npt.NDArray[np.int64] = values.argmax(axis=1)
    return action


def choose(probabilities: npt.NDArray[np.float64], uniform: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """int64[B]: the action whose cell of the cumulative probabilities float64[B, A] holds uniform float32[B]."""
    cumulative = np.cumsum(probabilities, axis=1)
    below: npt.NDArray[np.bool_] = cumulative[:, :-1] <= (uniform * cumulative[:, -1])[:, None]
    action: npt.NDArray[np.int64] = below.sum(axis=1)
    return action


def one_hot(action: npt.NDArray[np.int64], n_actions: int) -> npt.NDArray[np.float64]:
    """float64[B, A]: all the probability on action int64[B]."""
    out = np.zeros((action.size, n_actions))
    out[np.arange(action.size), action] = 1.0
    return out
