"""Lanes: W trajectories side by side in one float32 workspace, for the compiled rollouts.

The workspace is flat: row r starts at element r PITCH and holds one element for each lane. Offsets are unsigned, so
that no index carries the test for "counted from the end". From the start:

    scratch     d + 5    phi_1 .. phi_d, then BEST, ACTION, STEP, SHRINK, TOTAL
    rewards     4        noise of 4 rounds, which they turn into rewards
    draws       4 d      the algorithm's random numbers of 4 rounds
    tables      (d+4) A  A rows each: factors 1 .. d of the actions (at first: features), MEAN, SQUARE, COUNT, TRUTH
    fresh       used with fresh action sets; otherwise what `steps.pick` may read behind the tables and never takes
      features  d A        A rows of each feature of the round's actions
      root      d d + d    d rows of each column of S with S S' = A_t^-1, then w_t
      theta     d          w*
      four      4          the block of the action sets' uniforms that was drawn last

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
UNIT_BOX, GAUSSIAN, SPHERE = range(3)
"""Priors over w*, as the kernels know them."""
NORMAL, BOUNDED, BERNOULLI = range(3)
"""Laws of the reward."""

BEST, ACTION, STEP, SHRINK, TOTAL = range(5)
"""Scratch rows behind phi: largest value so far, its action, k (r - m_j), k / (1 + sqrt k), a sum."""
MEAN, SQUARE, COUNT, TRUTH = range(4)
"""Tables behind the factors: m_a, q_a, times played, <a, w*>."""
SCRATCH, TABLES = 5, 4

Rows = npt.NDArray[np.float32]
Indices = npt.NDArray[np.uint64]
Word = Any  # np.uint64 below 2**32 inside compiled code
Offset = Any  # np.uint64 inside compiled code: where a row starts
Dim = tuple[np.float32, ...]  # d zeros: makes d a constant of the compiled code

TAG_ENVIRONMENT = U(USE_UNIFORM << 8 | Stream.ENVIRONMENT)
TAG_ENVIRONMENT_NORMAL = U(USE_NORMAL << 8 | Stream.ENVIRONMENT)
TAG_ACTION_SET = U(USE_UNIFORM << 8 | Stream.ACTION_SET)
TAG_REWARD = U(USE_NORMAL << 8 | Stream.REWARD)
TAG_REWARD_UNIFORM = U(USE_UNIFORM << 8 | Stream.REWARD)
TAG_UNIFORM = U(USE_UNIFORM << 8 | Stream.ALGORITHM)
TAG_NORMAL = U(USE_NORMAL << 8 | Stream.ALGORITHM)

_ZERO = np.float32(0)
_ONE = np.float32(1)
_TWO = np.float32(2)
_SQRT_3 = np.float32(3**0.5)


def workspace(n_actions: int, dim: int) -> Rows:
    """A workspace of zeros for blocks of this size."""
    rows = 5 * dim + SCRATCH + 4 + n_actions * (dim + TABLES)
    rows += n_actions * dim + dim * dim + 2 * dim + 4
    raw = np.zeros(rows * int(PITCH) + 15, np.float32)
    skip = -(raw.ctypes.data // 4) % 16  # vectors that straddle two cache lines are half as fast
    return raw[skip : skip + rows * int(PITCH)]


@njit(forceinline=True)
def row(r: Any) -> Offset:
    """Where row r starts."""
    return U(r) * PITCH


@njit(forceinline=True)
def rewards_row(dim: Dim, t: int) -> Offset:
    """Where the rewards of round t are."""
    return row(len(dim) + SCRATCH + t % 4)


@njit(forceinline=True)
def draws_row(dim: Dim) -> Offset:
    """Where the draws start."""
    return row(len(dim) + SCRATCH + 4)


@njit(forceinline=True)
def table(dim: Dim, n_actions: int, number: int) -> Offset:
    """Where table `number` starts: 0 .. d - 1 the factors, d + MEAN and so on behind them."""
    return row(5 * len(dim) + SCRATCH + 4 + number * n_actions)


@njit(forceinline=True)
def fresh_tables(dim: Dim, n_actions: int) -> tuple[Offset, Offset, Offset, Offset, Offset]:
    """Where features, root, w_t, w* and the four rows of draws start, of a workspace for fresh action sets."""
    d = len(dim)
    features = table(dim, n_actions, d + TABLES)
    root = features + row(d * n_actions)
    mean = root + row(d * d)
    return features, root, mean, mean + row(d), mean + row(2 * d)


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
def noise_rows(S: Rows, dim: Dim, t: int, k0: Word, k1: Word, split: Word, index: Indices, law: int) -> None:
    """What the rewards of rounds t .. t + 3 are made of (4 divides t): see `icrl.envs.rewards`."""
    first = rewards_row(dim, 0)
    if law == NORMAL:
        normal_rows(S, first, t // 4, k0, k1, split | TAG_REWARD, index)
    else:
        uniform_rows(S, first, t // 4, k0, k1, split | TAG_REWARD_UNIFORM, index)
    if law == BOUNDED:
        for lane in range(4):
            at = first + row(lane)
            for w in range(W):
                S[at + w] = _SQRT_3 * (_TWO * S[at + w] - _ONE)


@njit(nogil=True, error_model="numpy")
def theta_rows(
    S: Rows, theta: Offset, four: Offset, dim: Dim, k0: Word, k1: Word, split: Word, index: Indices, prior: int
) -> None:
    """w* of fresh environments in d rows from `theta`; `four` is where four rows for draws are."""
    d = len(dim)
    for k in range(d):
        if k % 4 == 0 and prior == UNIT_BOX:
            uniform_rows(S, four, k // 4, k0, k1, split | TAG_ENVIRONMENT, index)
        elif k % 4 == 0:
            normal_rows(S, four, k // 4, k0, k1, split | TAG_ENVIRONMENT_NORMAL, index)
        source, target = four + row(k % 4), theta + row(k)
        for w in range(W):
            S[target + w] = S[source + w]
    if prior == SPHERE:
        for w in range(W):
            square = S[theta + w] * S[theta + w]
            for k in range(1, d):
                square += S[theta + row(k) + w] * S[theta + row(k) + w]
            centre = square == _ZERO
            radius = _ONE if centre else np.sqrt(square)
            for k in range(d):
                unit_k = S[theta + row(k) + w] / radius
                S[theta + row(k) + w] = _ONE if centre and k == 0 else unit_k


@njit(nogil=True)
def feature_rows(
    S: Rows,
    n_actions: int,
    dim: Dim,
    features: Offset,
    theta: Offset,
    four: Offset,
    first: int,
    k0: Word,
    k1: Word,
    tag: Word,
    index: Indices,
) -> None:
    """An action set from the uniforms `first` .. first + A d - 1 of a stream, <a, w*> into TRUTH.

    Features are scaled to [-1, 1), d tables of A rows from `features`. Where 4 does not divide `first`, its block must
    be in the four rows from `four` already; the last block that is drawn stays there.
    """
    d = len(dim)
    truths = table(dim, n_actions, d + TRUTH)
    for number in range(n_actions * d):
        position = first + number
        if position % 4 == 0:
            uniform_rows(S, four, position // 4, k0, k1, tag, index)
        source = four + row(position % 4)
        a, k = number // d, number % d
        target, truth = features + row(k * n_actions + a), truths + row(a)
        weight = theta + row(k)
        for w in range(W):
            x = _TWO * S[source + w] - _ONE
            S[target + w] = x
            term = x * S[weight + w]
            before = S[truth + w]
            S[truth + w] = term if k == 0 else before + term


@njit(nogil=True)
def clip_truth(S: Rows, n_actions: int, dim: Dim) -> None:
    """TRUTH clipped to [0, 1]: the mean of a reward of 0 or 1."""
    truths = table(dim, n_actions, len(dim) + TRUTH)
    for w in range(row(n_actions)):
        S[truths + w] = min(max(S[truths + w], _ZERO), _ONE)


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
