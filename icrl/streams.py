"""Counter-based randomness: every number is a pure function of (seed, split, stream, trajectory index, position).

Philox4x32-10 (Salmon et al., 2011) with key (seed_lo, seed_hi) and counter (block, split << 16 | use << 8 | stream,
index_lo, index_hi); position c is word c % 4 of block c // 4. `use` keeps uniforms, normals and orders apart.

The device functions use only + - * / sqrt, integer operations and polynomials of their own, without fastmath, so that
the bytes do not depend on the instruction set, on a vendor's libm or on how the loops around them are vectorised.

Shapes: n indices, count numbers for each.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

Word = Any  # np.uint64 below 2**32 inside compiled code, whose arithmetic NumPy's stubs cannot follow
Real = Any  # np.float32 inside compiled code


class Split(IntEnum):
    """Disjoint sets of trajectories: the same index in two splits is two trajectories."""

    TRAIN = 0
    VALIDATION = 1
    TEST = 2
    EVAL = 3


class Stream(IntEnum):
    """What a random number is for: streams of one trajectory are independent."""

    ENVIRONMENT = 0
    REWARD = 1
    ALGORITHM = 2
    MIXTURE = 3
    """Position 0: the component of a trajectory; 1 + t: the component that acts in round t."""
    ORDER = 4
    TRANSITION = 5
    """Position t: the state of round t."""
    ACTION_SET = 6
    """Fresh action sets, A d numbers a round."""
    LABEL = 7
    """Labels that are drawn."""


USE_UNIFORM = 0
USE_NORMAL = 1
USE_ORDER = 2
USE_GAMMA = 3
USE_EXPONENTIAL = 4

_M0 = np.uint64(0xD2511F53)
_M1 = np.uint64(0xCD9E8D57)
_W0 = np.uint64(0x9E3779B9)
_W1 = np.uint64(0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_8 = np.uint64(8)
_32 = np.uint64(32)

_UNIT = np.float32(2.0**-24)
_2_24 = np.float32(2.0**24)
_HALF = np.float32(0.5)
_ONE = np.float32(1.0)
_TWO = np.float32(2.0)
_FOUR = np.float32(4.0)
_SQRT2 = np.float32(1.4142135)
_LN2 = np.float32(0.6931472)
_HALF_PI = np.float32(1.5707964)
_LOG2_E = np.float32(1.442695)
_LN2_HIGH = np.float32(0.693359375)  # 9 bits, so that n * _LN2_HIGH is exact
_LN2_LOW = np.float32(-2.1219444e-4)
_EXP_FLOOR = np.float32(-87.0)

# Taylor: 2 atanh(s) = 2 s (1 + s^2/3 + ...), |s| <= 0.172; sin and cos on |x| <= pi/4; exp on |x| <= ln(2)/2
_L1, _L2, _L3, _L4 = (np.float32(1 / n) for n in (3, 5, 7, 9))
_S1, _S2, _S3, _S4 = (np.float32(1 / n) for n in (-6, 120, -5040, 362880))
_C1, _C2, _C3, _C4 = (np.float32(1 / n) for n in (-2, 24, -720, 40320))
_E2, _E3, _E4, _E5, _E6, _E7 = (np.float32(1 / n) for n in (2, 6, 24, 120, 720, 5040))


@njit(cache=True, forceinline=True)
def philox(c0: Word, c1: Word, c2: Word, c3: Word, k0: Word, k1: Word) -> tuple[Word, Word, Word, Word]:
    """Philox4x32-10: four words of counter and two of key -> four random words, each a uint64 below 2**32.

    64-bit lanes throughout: the products need them, and packing the words between rounds costs as much again.
    """
    for _ in range(10):
        p0 = _M0 * c0
        p1 = _M1 * c2
        c0, c1 = (p1 >> _32) ^ c1 ^ k0, p1 & _LOW
        c2, c3 = (p0 >> _32) ^ c3 ^ k1, p0 & _LOW
        k0 = (k0 + _W0) & _LOW
        k1 = (k1 + _W1) & _LOW
    return c0, c1, c2, c3


@njit(cache=True, forceinline=True)
def unit(word: Word) -> Real:
    """A word -> float32 uniform on [0, 1), a multiple of 2**-24."""
    return np.float32(np.int32(word >> _8)) * _UNIT


@njit(cache=True, forceinline=True, error_model="numpy")
def _log_bits(bits: Real, bias: Real) -> Real:
    """ln(2^(e - bias) m) of the float32 bits of 2^(e - 127) m: ln m = 2 atanh((m - 1) / (m + 1)), m near 1."""
    exponent = np.float32(np.int32((bits >> np.int32(23)) - bias))
    m = np.int32((bits & np.int32(0x7FFFFF)) | np.int32(0x3F800000)).view(np.float32)
    large = m > _SQRT2
    m = m * _HALF if large else m
    exponent = exponent + _ONE if large else exponent
    s = (m - _ONE) / (m + _ONE)
    s2 = s * s
    return exponent * _LN2 + _TWO * s * (_ONE + s2 * (_L1 + s2 * (_L2 + s2 * (_L3 + s2 * _L4))))


@njit(cache=True, forceinline=True)
def log_positive(x: Real) -> Real:
    """float32 natural logarithm of a normal x > 0; absolute error below 2e-7 max(1, |ln x|)."""
    return _log_bits(np.float32(x).view(np.int32), np.int32(127))


@njit(cache=True, forceinline=True)
def exponential(u: Real) -> Real:
    """A float32 from `unit` -> a standard exponential, -ln(u + 2**-24)."""
    return -_log_bits(np.float32(u * _2_24 + _ONE).view(np.int32), np.int32(151))


# error_model: no test for division by zero, whose branch would keep the loops around it from vectorising
@njit(cache=True, forceinline=True, error_model="numpy")
def normal_pair(u: Real, v: Real) -> tuple[Real, Real]:
    """Two float32 from `unit` -> two independent float32 standard normals by Box-Muller; |z| <= 5.77 (24 bits)."""
    # ln(n 2^-24), n = 1 .. 2^24
    log = _log_bits(np.float32(u * _2_24 + _ONE).view(np.int32), np.int32(151))
    radius = np.sqrt(-_TWO * log)
    # the top two bits of v choose the quadrant, the other 22 the angle in [-pi/4, pi/4)
    turns = v * _FOUR
    quadrant = np.int32(turns)
    x = (turns - np.float32(quadrant) - _HALF) * _HALF_PI
    x2 = x * x
    sine = x * (_ONE + x2 * (_S1 + x2 * (_S2 + x2 * (_S3 + x2 * _S4))))
    cosine = _ONE + x2 * (_C1 + x2 * (_C2 + x2 * (_C3 + x2 * _C4)))
    odd = (quadrant & np.int32(1)) != 0
    a = sine if odd else cosine
    b = cosine if odd else sine
    a = -a if (quadrant == 1) | (quadrant == 2) else a
    b = -b if quadrant >= 2 else b
    return radius * a, radius * b


@njit(cache=True, forceinline=True)
def exp_nonpositive(x: Real) -> Real:
    """float32 exp on x <= 0, relative error below 2e-7; below -87 it stays at exp(-87)."""
    x = max(x, _EXP_FLOOR)
    n = np.int32(_HALF - x * _LOG2_E)
    f = np.float32(n)
    r = x + f * _LN2_HIGH
    r = r + f * _LN2_LOW
    series = _ONE + r * (_ONE + r * (_E2 + r * (_E3 + r * (_E4 + r * (_E5 + r * (_E6 + r * _E7))))))
    return series * np.int32((np.int32(127) - n) << np.int32(23)).view(np.float32)


@njit(cache=True, nogil=True)
def _fill_uniforms(k0: Word, k1: Word, tag: Word, indices: Int64Array, start: int, out: Float32Array) -> None:
    for row in range(indices.size):
        low, high = np.uint64(indices[row]) & _LOW, np.uint64(indices[row]) >> _32
        for block in range(start // 4, (start + out.shape[1] + 3) // 4):
            words = philox(np.uint64(block), tag, low, high, k0, k1)
            for lane in range(4):
                column = block * 4 + lane - start
                if 0 <= column < out.shape[1]:
                    out[row, column] = unit(words[lane])


@njit(cache=True, nogil=True)
def _fill_normals(k0: Word, k1: Word, tag: Word, indices: Int64Array, start: int, out: Float32Array) -> None:
    for row in range(indices.size):
        low, high = np.uint64(indices[row]) & _LOW, np.uint64(indices[row]) >> _32
        for block in range(start // 4, (start + out.shape[1] + 3) // 4):
            w0, w1, w2, w3 = philox(np.uint64(block), tag, low, high, k0, k1)
            z0, z1 = normal_pair(unit(w0), unit(w1))
            z2, z3 = normal_pair(unit(w2), unit(w3))
            column = block * 4 - start
            for lane, z in enumerate((z0, z1, z2, z3)):
                if 0 <= column + lane < out.shape[1]:
                    out[row, column + lane] = z


@njit(cache=True, nogil=True)
def _fill_words(k0: Word, k1: Word, tag: Word, low: Word, high: Word, out: Words) -> None:
    for block in range(out.shape[0]):
        words = philox(np.uint64(block), tag, low, high, k0, k1)
        for pair in range(2):
            out[block, pair] = (words[2 * pair] << _32) | words[2 * pair + 1]


def key_words(seed: int) -> tuple[np.uint64, np.uint64]:
    """The Philox key (low, high) of a seed in [0, 2**63); raises ValueError outside."""
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed = {seed}: expected 0 <= seed < 2**63")
    return np.uint64(seed & 0xFFFFFFFF), np.uint64(seed >> 32)


def tag_word(split: Split, stream: Stream, use: int) -> np.uint64:
    """The second word of the counter."""
    return np.uint64(split << 16 | use << 8 | stream)


def checked_indices(indices: Int64Array) -> Int64Array:
    """Trajectory indices as contiguous int64[n]; raises ValueError for another shape or a negative index."""
    checked = np.ascontiguousarray(indices, dtype=np.int64)
    if checked.ndim != 1 or (checked.size and checked.min() < 0):
        raise ValueError("indices: expected a vector of non-negative integers")
    return checked


def uniforms(
    seed: int, split: Split, stream: Stream, indices: Int64Array, count: int, *, start: int = 0
) -> Float32Array:
    """Positions start .. start + count - 1 of each index's uniforms on [0, 1), 24 bits: float32[n, count]."""
    checked = checked_indices(indices)
    out = np.empty((checked.size, count), np.float32)
    _fill_uniforms(*key_words(seed), tag_word(split, stream, USE_UNIFORM), checked, start, out)
    return out


def normals(
    seed: int, split: Split, stream: Stream, indices: Int64Array, count: int, *, start: int = 0
) -> Float32Array:
    """Positions start .. start + count - 1 of each index's standard normals: float32[n, count]."""
    checked = checked_indices(indices)
    out = np.empty((checked.size, count), np.float32)
    _fill_normals(*key_words(seed), tag_word(split, stream, USE_NORMAL), checked, start, out)
    return out


def permutation(seed: int, split: Split, stream: Stream, n: int, key: int = 0) -> Int64Array:
    """A uniform permutation of 0 .. n - 1 as int64[n], by sorting one 64-bit word for each; `key` >= 0 numbers them."""
    words = np.empty(((n + 1) // 2, 2), np.uint64)
    low, high = np.uint64(key & 0xFFFFFFFF), np.uint64(key >> 32)
    _fill_words(*key_words(seed), tag_word(split, stream, USE_ORDER), low, high, words)
    return np.argsort(words.reshape(-1)[:n], kind="stable").astype(np.int64, copy=False)
