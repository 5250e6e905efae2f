"""The probability that an action is the best of independent Beta posteriors, by quadrature.

P(k is best) = integral over [0, 1] of f_k(x) prod_{j != k} F_j(x), f the Beta density and F its distribution function.
For whole-numbered parameters the integrand is a polynomial of degree N + A - 1, N = sum_j (a_j + b_j - 2): n nodes of
Gauss and Legendre integrate it without error from 2 n >= N + A on. The nodes crowd towards 0 and 1 as Beta densities
narrow there, so n ~ sqrt(N) is enough where that is less.

Shapes: B interactions, A actions, n nodes, U pairs of parameters.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import numpy.typing as npt
from scipy import special

Float64Array = npt.NDArray[np.float64]

ERROR = 1e-8
"""Largest absolute error of a probability (measured: below 1e-12 up to N = 1000, 2e-9 at N = 100,000)."""

_ROWS_KEPT = 2**14
_TOGETHER = 64


def nodes_for(rounds: int, n_actions: int) -> int:
    """How many nodes keep the error below ERROR after so many rounds: a power of two, so that few grids are needed."""
    enough = min((rounds + n_actions + 1) // 2, 6 * math.isqrt(rounds) + 24)
    return max(16, 1 << (enough - 1).bit_length())


@functools.lru_cache(maxsize=8)
def _legendre(n: int) -> tuple[Float64Array, Float64Array]:
    """Nodes and weights of Gauss and Legendre on [0, 1]."""
    x, weight = special.roots_legendre(n)
    return (x + 1) / 2, weight / 2


class BestBeta:
    """Keeps the density and distribution function of every pair of parameters that it has met, on its nodes."""

    def __init__(self) -> None:
        self._n = 0

    def probabilities(self, a: Float64Array, b: Float64Array) -> Float64Array:
        """float64[B, A], rows that sum to 1, for whole-numbered parameters float64[B, A] >= 1."""
        B, A = a.shape
        if B == 0:
            return np.zeros((0, A))
        n = nodes_for(int((a + b - 2).sum(axis=1).max()), A)
        if n != self._n:
            self._start(n)
        row = self._rows(a, b)
        weight = _legendre(n)[1]
        out = np.empty((B, A))
        for first in range(0, B, _TOGETHER):  # B A n values need not be held at once
            some = row[first : first + _TOGETHER]
            # density times the distribution functions of the actions before, then of those behind
            before = np.ones((len(some), n))
            products = []
            for k in range(A):
                products.append(before * self._density[some[:, k]])
                before = before * self._distribution[some[:, k]]
            behind = np.broadcast_to(weight, before.shape)
            for k in reversed(range(A)):
                out[first : first + _TOGETHER, k] = np.einsum("bn,bn->b", products[k], behind)
                behind = behind * self._distribution[some[:, k]]
        total: Float64Array = out / out.sum(axis=1, keepdims=True)
        return total

    def _start(self, n: int) -> None:
        self._n = n
        self._row_of: dict[int, int] = {}
        self._density, self._distribution = np.empty((64, n)), np.empty((64, n))

    def _rows(self, a: Float64Array, b: Float64Array) -> npt.NDArray[np.int64]:
        """int64[B, A]: the rows of density and distribution function of each pair, filled in where they are new."""
        pairs, place = np.unique((a.astype(np.int64) << 32) + b.astype(np.int64), return_inverse=True)
        keys = pairs.tolist()
        if len(self._row_of) + len(keys) > _ROWS_KEPT:
            self._start(self._n)
        known = len(self._row_of)
        new = np.array([key for key in keys if key not in self._row_of], np.int64)
        if new.size:
            needed = known + new.size
            if needed > len(self._density):
                more = np.empty((max(needed, 2 * len(self._density)) - known, self._n))
                self._density = np.concatenate([self._density[:known], more])
                self._distribution = np.concatenate([self._distribution[:known], more])
            self._row_of.update(zip(new.tolist(), range(known, needed), strict=True))
            rows = slice(known, needed)
            self._density[rows], self._distribution[rows] = _beta(new >> 32, new & 0xFFFFFFFF, *_legendre(self._n))
        at = np.array([self._row_of[key] for key in keys])
        return at[place].reshape(a.shape)


def _beta(
    a: npt.NDArray[np.int64], b: npt.NDArray[np.int64], x: Float64Array, weight: Float64Array
) -> tuple[Float64Array, Float64Array]:
    """Density and distribution function float64[U, n] of Beta(a, b) at nodes x float64[n], for a and b int64[U].

    The density's constant is chosen so that its own quadrature is 1: without the rounding of a large log-beta.
    """
    a, b = a[:, None], b[:, None]
    log_density = special.xlogy(a - 1, x) + special.xlog1py(b - 1, -x)
    density = np.exp(log_density - log_density.max(axis=1, keepdims=True))
    return density / (density @ weight)[:, None], special.betainc(a, b, x)
