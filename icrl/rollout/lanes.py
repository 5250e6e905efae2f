"""Lanes: W trajectories side by side in one float32 workspace, for the compiled rollouts.

The workspace is flat: row r starts at element r PITCH and holds one element for each lane. Offsets are unsigned, so
that no index carries the test for "counted from the end". From the start:

    scratch     d + 5    phi_1 .. phi_d, then BEST, ACTION, STEP, SHRINK, TOTAL
    rewards     CHUNK    noise, which rounds turn into rewards
    actions     CHUNK    actions played, as floats
    draws       4 d      the algorithm's random numbers of 4 rounds
    tables      (d+4) A  A rows each: factors 1 .. d of the actions (at first: features), MEAN, SQUARE, COUNT, TRUTH

Loops run over the actions outside and over the lanes inside. The compiler vectorises the inner loop behind one test,
made before the outer loop, that what is written overlaps nothing else over all actions; so a table's rows must lie
together, and one action's must not. Values are loaded before they are selected from: a load under a condition would
fail that test. Helpers are not cached by themselves: their callers' caches would not see that they have changed.

Shapes: W lanes, T rounds, A actions, d dim.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from icrl.streams import USE_NORMAL, USE_UNIFORM, Stream, normal_pair, philox, unit

U = np.uint64
LANES = 128
W = U(LANES)
"""Lanes of a block; never changes bytes."""
PITCH = U(144)
"""Elements from row to row: not in step with the cache's 4 KiB period, on which loads would wait for stores."""
CHUNK = 16
"""Rounds between two writes of actions and rewards; a multiple of the 4 numbers of a Philox block."""

BEST, ACTION, STEP, SHRINK, TOTAL = range(5)
"""Scratch rows behind phi: largest value so far, its action, k (r - m_j), k / (1 + sqrt k), a sum."""
MEAN, SQUARE, COUNT, TRUTH = range(4)
"""Tables behind the factors: m_a, q_a, times played, <a, w*>."""
SCRATCH, TABLES = 5, 4

Rows = npt.NDArray[np.float32]
Indices = npt.NDArray[np.uint64]
Word = Any  # np.uint64 below 2**32 inside compiled code
Offset = Any  # np.uint64 inside compiled code: where a row starts
Dim = tuple[None, ...]  # d Nones: makes d a constant of the compiled code

TAG_ENVIRONMENT = U(USE_UNIFORM << 8 | Stream.ENVIRONMENT)
TAG_REWARD = U(USE_NORMAL << 8 | Stream.REWARD)
TAG_UNIFORM = U(USE_UNIFORM << 8 | Stream.ALGORITHM)
TAG_NORMAL = U(USE_NORMAL << 8 | Stream.ALGORITHM)

_ONE = np.float32(1)
_TWO = np.float32(2)


def workspace(n_actions: int, dim: int) -> Rows:
    """A workspace of zeros for blocks of this size."""
    rows = dim + SCRATCH + 2 * CHUNK + 4 * dim + n_actions * (dim + TABLES)
    raw = np.zeros(rows * int(PITCH) + 15, np.float32)
    skip = -(raw.ctypes.data // 4) % 16  # vectors that straddle two cache lines are half as fast
    return raw[skip : skip + rows * int(PITCH)]


@njit(forceinline=True)
def row(r: Any) -> Offset:
    """Where row r starts."""
    return U(r) * PITCH


@njit(forceinline=True)
def rewards_row(dim: Dim) -> Offset:
    """Where the rewards start; the actions follow CHUNK rows later."""
    return row(len(dim) + SCRATCH)


@njit(forceinline=True)
def draws_row(dim: Dim) -> Offset:
    """Where the draws start."""
    return row(len(dim) + SCRATCH + 2 * CHUNK)


@njit(forceinline=True)
def table(dim: Dim, n_actions: int, number: int) -> Offset:
    """Where table `number` starts: 0 .. d - 1 the factors, d + MEAN and so on behind them."""
    return row(5 * len(dim) + SCRATCH + 2 * CHUNK + number * n_actions)


@njit(nogil=True)
def uniform_rows(S: Rows, first: Offset, block: int, k0: Word, k1: Word, tag: Word, index: Indices) -> None:
    """Block `block` of every lane's uniforms as four rows from `first`; index uint64[2 W]: low words, high words."""
    counter = U(block)
    for w in range(W):
        w0, w1, w2, w3 = philox(counter, tag, index[w], index[W + w], k0, k1)
        S[first + w] = unit(w0)
        S[first + PITCH + w] = unit(w1)
        S[first + U(2) * PITCH + w] = unit(w2)
        S[first + U(3) * PITCH + w] = unit(w3)


@njit(nogil=True)
def normal_rows(S: Rows, first: Offset, block: int, k0: Word, k1: Word, tag: Word, index: Indices) -> None:
    """Block `block` of every lane's standard normals as four rows from `first`."""
    uniform_rows(S, first, block, k0, k1, tag, index)
    for pair in range(2):
        at = first + row(2 * pair)
        for w in range(W):
            z0, z1 = normal_pair(S[at + w], S[at + PITCH + w])
            S[at + w] = z0
            S[at + PITCH + w] = z1


@njit(nogil=True)
def environment_rows(S: Rows, n_actions: int, dim: Dim, k0: Word, k1: Word, split: Word, index: Indices) -> None:
    """Fresh environments: features scaled to [-1, 1) into the factors, <a, w*> into TRUTH; w* passes through phi."""
    d = len(dim)
    four = draws_row(dim)
    for position in range(d + n_actions * d):
        if position % 4 == 0:
            uniform_rows(S, four, position // 4, k0, k1, split | TAG_ENVIRONMENT, index)
        source = four + row(position % 4)
        if position < d:
            target = row(position)
            for w in range(W):
                S[target + w] = S[source + w]
            continue
        a, k = (position - d) // d, (position - d) % d
        target = table(dim, n_actions, k) + row(a)
        truth = table(dim, n_actions, d + TRUTH) + row(a)
        theta = row(k)
        for w in range(W):
            x = _TWO * S[source + w] - _ONE
            S[target + w] = x
            term = x * S[theta + w]
            before = S[truth + w]
            S[truth + w] = term if k == 0 else before + term


@njit(nogil=True)
def optimal_lanes(S: Rows, n_actions: int, dim: Dim, out: npt.NDArray[np.uint8]) -> None:
    """out uint8[W]: the action with the largest TRUTH; the lowest wins ties."""
    truth = table(dim, n_actions, len(dim) + TRUTH)
    for w in range(W):
        best = S[truth + w]
        out[w] = 0
        for a in range(1, n_actions):
            value = S[truth + row(a) + w]
            if value > best:
                best = value
                out[w] = a
