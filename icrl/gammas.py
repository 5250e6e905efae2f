"""Gamma, beta and Dirichlet draws from counter-based streams: functions of (seed, split, stream, index, cell) alone.

Marsaglia and Tsang's rejection (2000) for shapes >= 1: with d = shape - 1/3, c = 1 / sqrt(9 d) and v = (1 + c z)^3, the
draw d v is accepted where ln u < z^2 / 2 + d (1 - v + ln v). Attempt n of a cell has the counter words
(cell, n << 20 | tag): how many attempts one draw takes changes no other.

Posterior parameters are often 1, whose draw is an exponential: for whole shapes G_n = G_1 + G_{n-1}, where G_1 takes
one word, c % 4 of block c // 4 of use EXPONENTIAL for cell c, and G_{n-1} the attempts of the cell.

Shapes: n indices, m cells for each.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from icrl import streams
from icrl.streams import (
    USE_EXPONENTIAL,
    USE_GAMMA,
    Split,
    Stream,
    Word,
    exponential,
    log_positive,
    normal_pair,
    philox,
    unit,
)

Float32Array = npt.NDArray[np.float32]
Real = Any  # np.float32 inside compiled code

ATTEMPT = np.uint64(20)
"""Attempts are counted from this bit of the counter's second word on."""

_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)
_THIRD = np.float32(1 / 3)
_ONE = np.float32(1)
_NINE = np.float32(9)
_HALF = np.float32(0.5)
_SQUEEZE = np.float32(0.0331)
_STEP = np.float32(2.0**-24)
_SMALLEST = np.float32(2.0**-25)  # the mean of the 2**-24 of probability that `exponential` rounds to 0


@njit(cache=True, forceinline=True, error_model="numpy")
def candidate(shape: Real, z: Real) -> Real:
    """d v for a standard normal z; not positive where it must be rejected."""
    d = shape - _THIRD
    t = _ONE + z / np.sqrt(_NINE * d)
    return d * (t * t * t)


@njit(cache=True, forceinline=True)
def squeezed(z: Real, u: Real) -> bool:
    """A cheap test that accepts most draws which would be accepted, given that the candidate is positive."""
    square = z * z
    return bool(u + _STEP < _ONE - _SQUEEZE * square * square)


@njit(cache=True, error_model="numpy")
def accepted(shape: Real, z: Real, u: Real) -> bool:
    """Whether the candidate of a normal z is a draw, at the uniform u."""
    value = candidate(shape, z)
    if value <= np.float32(0):
        return False
    if squeezed(z, u):
        return True
    d = shape - _THIRD
    v = value / d
    return bool(log_positive(u + _STEP) < _HALF * z * z + d * (_ONE - v + log_positive(v)))


@njit(cache=True)
def gamma_retry(shape: Real, first: int, cell: Word, tag: Word, low: Word, high: Word, k0: Word, k1: Word) -> Real:
    """The first accepted draw of the attempts first, first + 2, ... of a cell."""
    attempt = np.uint64(first)
    while True:
        w0, w1, w2, _ = philox(cell, tag | (attempt << ATTEMPT), low, high, k0, k1)
        z, _ = normal_pair(unit(w0), unit(w1))
        u = unit(w2)
        if accepted(shape, z, u):
            return candidate(shape, z)
        attempt += np.uint64(2)


@njit(cache=True, error_model="numpy")
def beta_finish(
    a: Real,
    b: Real,
    z0: Real,
    z1: Real,
    u0: Real,
    u1: Real,
    cell: Word,
    tag: Word,
    low: Word,
    high: Word,
    k0: Word,
    k1: Word,
) -> Real:
    """Beta(a, b) from the normals and uniforms of attempt 0, which serves both; then odd ones serve a, even ones b."""
    x = candidate(a, z0) if accepted(a, z0, u0) else gamma_retry(a, 1, cell, tag, low, high, k0, k1)
    y = candidate(b, z1) if accepted(b, z1, u1) else gamma_retry(b, 2, cell, tag, low, high, k0, k1)
    return x / (x + y)


@njit(cache=True)
def beta_draw(a: Real, b: Real, cell: Word, tag: Word, low: Word, high: Word, k0: Word, k1: Word) -> Real:
    """Beta(a, b), a and b >= 1: G_a / (G_a + G_b)."""
    w0, w1, w2, w3 = philox(cell, tag, low, high, k0, k1)
    z0, z1 = normal_pair(unit(w0), unit(w1))
    return beta_finish(a, b, z0, z1, unit(w2), unit(w3), cell, tag, low, high, k0, k1)


@njit(nogil=True)
def whole_gammas(
    shape: Float32Array, start: int, split: Word, low: Word, high: Word, k0: Word, k1: Word, out: Float32Array
) -> None:
    """Draws float32[m] of whole shapes float32[m] in the cells from `start` on, a multiple of 4.

    `split` is the tag word of split and stream, without a use.
    """
    m = out.size
    for block in range((m + 3) // 4):
        counter = np.uint64(start // 4 + block)
        words = philox(counter, split | np.uint64(USE_EXPONENTIAL << 8), low, high, k0, k1)
        for lane in range(4):
            if 4 * block + lane < m:
                out[4 * block + lane] = unit(words[lane])
    for cell in range(m):
        out[cell] = max(exponential(out[cell]), _SMALLEST)
    tag = split | np.uint64(USE_GAMMA << 8)
    for cell in range(m):
        if shape[cell] > _ONE:
            out[cell] += gamma_retry(shape[cell] - _ONE, 0, np.uint64(start + cell), tag, low, high, k0, k1)


@njit(cache=True, nogil=True)
def _fill_whole(
    k0: Word, k1: Word, split: Word, index: Any, start: int, shape: Float32Array, out: Float32Array
) -> None:
    for row in range(index.size):
        low, high = np.uint64(index[row]) & _LOW, np.uint64(index[row]) >> _32
        whole_gammas(shape[row], start, split, low, high, k0, k1, out[row])


@njit(cache=True, nogil=True)
def _fill_gammas(k0: Word, k1: Word, tag: Word, index: Any, start: int, shape: Float32Array, out: Float32Array) -> None:
    for row in range(index.size):
        low, high = np.uint64(index[row]) & _LOW, np.uint64(index[row]) >> _32
        for column in range(shape.shape[1]):
            cell = np.uint64(start + column)
            out[row, column] = gamma_retry(shape[row, column], 0, cell, tag, low, high, k0, k1)


@njit(cache=True, nogil=True)
def _fill_betas(
    k0: Word, k1: Word, tag: Word, index: Any, start: int, a: Float32Array, b: Float32Array, out: Float32Array
) -> None:
    for row in range(index.size):
        low, high = np.uint64(index[row]) & _LOW, np.uint64(index[row]) >> _32
        for column in range(a.shape[1]):
            cell = np.uint64(start + column)
            out[row, column] = beta_draw(a[row, column], b[row, column], cell, tag, low, high, k0, k1)


def gammas(
    seed: int, split: Split, stream: Stream, indices: npt.NDArray[np.int64], shape: Float32Array, *, start: int = 0
) -> Float32Array:
    """Standard gamma draws float32[n, m] of shapes float32[n, m] >= 1, in the cells start .. start + m - 1."""
    checked = streams.checked_indices(indices)
    shape = _shapes(shape, checked.size)
    out = np.empty(shape.shape, np.float32)
    _fill_gammas(*streams.key_words(seed), streams.tag_word(split, stream, USE_GAMMA), checked, start, shape, out)
    return out


def gammas_of_whole_shapes(
    seed: int, split: Split, stream: Stream, indices: npt.NDArray[np.int64], shape: Float32Array, *, start: int
) -> Float32Array:
    """Standard gamma draws float32[n, m] of whole shapes float32[n, m] >= 1, several times faster where most are 1.

    In the cells start .. start + m - 1, `start` a multiple of 4.
    """
    checked = streams.checked_indices(indices)
    shape = _shapes(shape, checked.size)
    if start % 4 or np.any(shape != np.floor(shape)):
        raise ValueError(f"start = {start}: expected a multiple of 4, and whole shapes")
    out = np.empty(shape.shape, np.float32)
    _fill_whole(*streams.key_words(seed), streams.tag_word(split, stream, 0), checked, start, shape, out)
    return out


def betas(
    seed: int,
    split: Split,
    stream: Stream,
    indices: npt.NDArray[np.int64],
    a: Float32Array,
    b: Float32Array,
    *,
    start: int = 0,
) -> Float32Array:
    """Beta draws float32[n, m] of parameters float32[n, m] >= 1, in the cells start .. start + m - 1."""
    checked = streams.checked_indices(indices)
    a, b = _shapes(a, checked.size), _shapes(b, checked.size)
    out = np.empty(a.shape, np.float32)
    _fill_betas(*streams.key_words(seed), streams.tag_word(split, stream, USE_GAMMA), checked, start, a, b, out)
    return out


def _shapes(values: Float32Array, rows: int) -> Float32Array:
    checked = np.ascontiguousarray(values, dtype=np.float32)
    if checked.ndim != 2 or len(checked) != rows or (checked.size and not checked.min() >= 1):
        raise ValueError(f"shapes: expected {rows} rows of numbers >= 1, got an array of shape {checked.shape}")
    return checked
