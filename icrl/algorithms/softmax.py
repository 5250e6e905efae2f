"""softmax(values / temperature) in float64 with the same bits on every instruction set, for algorithms and rollouts.

Shapes: B interactions, A actions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from icrl.envs import mdp_kernels
from icrl.envs.mdp_kernels import Array, Real, sources

_LOG2_E = 1.4426950408889634
_LN2_HIGH = 0.6931471803691238  # 33 bits, so that n * _LN2_HIGH is exact
_LN2_LOW = 1.9082149292705877e-10
_EXP_FLOOR = -708.0
_SERIES = tuple(1 / math.factorial(n) for n in range(13, -1, -1))  # Taylor: on |r| <= ln(2) / 2 the rest is below 1e-17


@njit(nogil=True)
def exp_nonpositive(x: Real) -> Real:
    """float64 exp on x <= 0, relative error below 4e-16; below -708 it stays at exp(-708)."""
    x = max(x, _EXP_FLOOR)
    n = np.int64(0.5 - x * _LOG2_E)
    f = np.float64(n)
    r = x + f * _LN2_HIGH
    r = r + f * _LN2_LOW
    series = 0.0
    for coefficient in _SERIES:
        series = series * r + coefficient
    return series * np.int64((np.int64(1023) - n) << np.int64(52)).view(np.float64)


@njit(nogil=True, error_model="numpy")
def softmax_weights(values: Array, temperature: Real, weights: Array) -> None:
    """exp((values - max values) / temperature) of float64[A]."""
    top = values[0]
    for a in range(1, values.size):
        top = max(top, values[a])
    for a in range(values.size):
        weights[a] = exp_nonpositive((values[a] - top) / temperature)


@njit(nogil=True)
def pick(weights: Array, u: Real) -> int:
    """The action whose cell of the cumulative weights float64[A] holds the uniform u; `choose` with the same bits."""
    total = 0.0
    for a in range(weights.size):
        total += weights[a]
    left = np.float64(u) * total
    so_far, action = 0.0, 0
    for a in range(weights.size - 1):
        so_far += weights[a]
        if so_far <= left:
            action += 1
    return action


def _compile(stamp: int) -> Callable[..., None]:
    @njit(cache=True, nogil=True)
    def rows(values: Array, temperature: Real, weights: Array) -> None:
        _ = stamp
        for row in range(len(values)):
            softmax_weights(values[row], temperature, weights[row])

    return rows


_rows: Any = _compile(sources(mdp_kernels))


def weights_of(values: npt.NDArray[np.float64], temperature: float) -> npt.NDArray[np.float64]:
    """float64[B, A]: exp((values - max values) / temperature), proportional to the softmax."""
    values = np.ascontiguousarray(values)
    weights = np.empty(values.shape)
    _rows(values, temperature, weights)
    return weights
