"""What an algorithm is: a batched policy over B interactions that run in lockstep.

Shapes: B interactions, A actions.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from icrl import gammas, streams
from icrl.envs import Batch, Observation
from icrl.streams import Split, Stream

CHUNK = 64
"""Rounds whose random numbers are drawn at once."""


class Draws(Protocol):
    """The random numbers an algorithm may use in one round: functions of (seed, split, index, round) only."""

    @property
    def uniform(self) -> npt.NDArray[np.float32]:
        """float32[B] on [0, 1)."""
        ...

    @property
    def component(self) -> npt.NDArray[np.float32]:
        """float32[B] on [0, 1): chooses the component of a mixture that acts."""
        ...

    def normals(self, count: int) -> npt.NDArray[np.float32]:
        """float32[B, count] standard normals; `count` is the same in every round."""
        ...

    def betas(self, a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """float32[B, m]: Beta(a, b) for parameters float32[B, m] >= 1; m is the same in every round."""
        ...

    def gammas(self, shape: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """float32[B, m]: standard gamma draws for shapes float32[B, m] >= 1; m is the same whenever it is called."""
        ...

    def whole_gammas(self, shape: npt.NDArray[np.float32], start: int) -> npt.NDArray[np.float32]:
        """float32[B, m]: standard gamma draws for whole shapes float32[B, m] >= 1, in the cells from `start` on.

        The caller keeps the cells apart: `start` is a multiple of 4, and there are 2**32 of them.
        """
        ...


class StreamDraws:
    """The draws of stream ALGORITHM for these trajectory indices; `round` (from 0) is the caller's to set.

    Positions: uniform t, normals t count .. (t + 1) count - 1, gamma and beta cells t m .. (t + 1) m - 1.
    """

    def __init__(self, seed: int, split: Split, indices: npt.NDArray[np.int64]) -> None:
        self._key = (seed, split)
        self._index = indices
        self._kept: dict[tuple[str, int], tuple[int, npt.NDArray[np.float32]]] = {}
        self.round = 0

    @property
    def uniform(self) -> npt.NDArray[np.float32]:
        return self._chunked("uniform", 1)[:, 0]

    @property
    def component(self) -> npt.NDArray[np.float32]:
        return self._chunked("component", 1)[:, 0]

    def normals(self, count: int) -> npt.NDArray[np.float32]:
        return self._chunked("normal", count)

    def betas(self, a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return gammas.betas(*self._key, Stream.ALGORITHM, self._index, a, b, start=self.round * a.shape[1])

    def gammas(self, shape: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return gammas.gammas(*self._key, Stream.ALGORITHM, self._index, shape, start=self.round * shape.shape[1])

    def whole_gammas(self, shape: npt.NDArray[np.float32], start: int) -> npt.NDArray[np.float32]:
        return gammas.gammas_of_whole_shapes(*self._key, Stream.ALGORITHM, self._index, shape, start=start)

    def _chunked(self, kind: str, count: int) -> npt.NDArray[np.float32]:
        """float32[B, count]: the numbers of this round, drawn for many rounds at once."""
        chunk, slot = divmod(self.round, CHUNK)
        kept = self._kept.get((kind, count))
        if kept is None or kept[0] != chunk:
            first = chunk * CHUNK * count
            if kind == "normal":
                values = streams.normals(*self._key, Stream.ALGORITHM, self._index, CHUNK * count, start=first)
            elif kind == "uniform":
                values = streams.uniforms(*self._key, Stream.ALGORITHM, self._index, CHUNK * count, start=first)
            else:  # position 0 chooses the component of a whole trajectory
                values = streams.uniforms(*self._key, Stream.MIXTURE, self._index, CHUNK * count, start=first + 1)
            kept = (chunk, values.reshape(len(values), CHUNK, count))
            self._kept[kind, count] = kept
        return kept[1][:, slot]


class Algorithm(Protocol):
    """Alg(. | D_{t-1}, s_t), for B interactions at once; the pretrained transformer is one too.

    A round: `observe`, then `probabilities` or `act` (or both), then `update`.
    """

    name: str

    def reset(self, environments: Batch) -> None:
        """Start B fresh interactions; an algorithm sees the action sets and nothing else (only `optimal` does)."""

    def observe(self, observation: Observation) -> None:
        """See s_t; bandits with a fixed action set have none."""
        return

    def probabilities(self) -> npt.NDArray[np.float64]:
        """float64[B, A]: the distribution of the next action given the history."""
        ...

    def act(self, draws: Draws) -> npt.NDArray[np.int64]:
        """int64[B]: the actions of this round."""
        ...

    def update(self, action: npt.NDArray[np.int64], reward: npt.NDArray[np.float32]) -> None:
        """Append (action int64[B], reward float32[B]) to the history."""

    def resample(self) -> bool:
        """Put other Monte Carlo samples behind `probabilities` from the next `reset` on; False where there are none."""
        return False


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
