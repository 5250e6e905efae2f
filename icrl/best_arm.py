"""P(action k has the largest mean) under independent posteriors: Beta (Bernoulli bandits) and Gaussian.

Both are one-dimensional integrals over the value x of the best mean, P(k) = integral of f_k(x) prod_{j != k} F_j(x) dx
with densities f and distribution functions F, by quadrature in float64.

Shapes: B rows, A actions, N quadrature nodes.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy import special

Float64Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

TABLE_ROUNDS = 256
"""Longest horizon whose distribution functions are tabulated: 70 MB; beyond it they are evaluated on demand."""

MOST_NODES = 512
"""Nodes up to which quadrature of Beta posteriors is exact, whatever it costs."""

_CHUNK = 2**17
"""Most numbers of one intermediate array, so that a few of them stay in a core's cache."""

_REACH = 8
"""Standard deviations on either side of a Gaussian mean beyond which its distribution function counts as 0 or 1."""
_STEP = 2
"""Standard deviations that a piece of the Gaussian integral may span."""
_ORDER = 10
"""Gauss-Legendre nodes on each piece of the Gaussian integral."""


class BetaBest:
    """P(action k is best) for independent p_k ~ Beta(1 + s_k, 1 + f_k) after at most `rounds` rounds.

    With n_k = s_k + f_k plays the integrand is a polynomial of degree sum_k (n_k + 1) - 1 <= rounds + A - 1, so that
    Gauss-Legendre quadrature with ceil((rounds + A) / 2) nodes is exact but for rounding. All terms are positive and
    come from recurrences without subtraction: the relative error is below 1e-11, however small the probability is (down
    to 1e-290). Beyond MOST_NODES their number grows with the square root of the rounds, as a Beta density's width
    shrinks: the absolute error is then below 1e-8. Which other rows are asked for does not change a bit.
    """

    def __init__(self, n_actions: int, rounds: int) -> None:
        self.n_actions, self.rounds = n_actions, rounds
        nodes, weights = special.roots_legendre(_nodes(n_actions, rounds))
        self._nodes: Float64Array = (nodes + 1) / 2
        self._weights: Float64Array = weights / 2

    def probabilities(self, successes: npt.ArrayLike, failures: npt.ArrayLike) -> Float64Array:
        """float64[B, A] from whole numbers of successes and failures, each [B, A]; rows sum to 1.

        Raises:
            ValueError: counts of another shape, negative, or of more plays than `rounds` in a row.
        """
        s, f = np.asarray(successes).astype(np.int64), np.asarray(failures).astype(np.int64)
        if s.shape != f.shape or s.ndim != 2 or s.shape[1] != self.n_actions:
            raise ValueError(f"counts of shapes {s.shape} and {f.shape}: expected two of [B, {self.n_actions}]")
        if s.size and (min(s.min(), f.min()) < 0 or (s + f).sum(axis=1).max() > self.rounds):
            raise ValueError(f"counts: expected none below 0 and at most {self.rounds} plays in a row of them")
        out = np.empty(s.shape)
        step = max(1, _CHUNK // (self.n_actions * self._nodes.size))
        for first in range(0, len(s), step):
            some = slice(first, first + step)
            out[some] = _integrate(*self._functions(s[some], f[some]), self._weights)
        return _normalised(out)

    def _functions(self, s: IntArray, f: IntArray) -> tuple[Float64Array, Float64Array]:
        """Densities and distribution functions at the nodes, each float64[A, B, N]."""
        if self.rounds <= TABLE_ROUNDS:
            density, distribution = _beta_tables(self._nodes.size, self.rounds)
            n = s + f
            at = (n * (n + 1) // 2 + s).T
            return density[at], distribution[at]
        pairs, at = np.unique(np.stack([s, f], axis=-1).reshape(-1, 2), axis=0, return_inverse=True)
        at = at.reshape(s.shape).T
        a, b = pairs[:, :1] + 1.0, pairs[:, 1:] + 1.0
        x = self._nodes
        log_density = special.xlogy(a - 1, x) + special.xlog1py(b - 1, -x) - special.betaln(a, b)
        return np.exp(log_density)[at], special.betainc(a, b, x)[at]


def _nodes(n_actions: int, rounds: int) -> int:
    exact = -(-(rounds + n_actions) // 2)
    return min(exact, max(MOST_NODES, 6 * math.isqrt(rounds) + 24))


@lru_cache(maxsize=2)
def _beta_tables(count: int, rounds: int) -> tuple[Float64Array, Float64Array]:
    """Density and distribution function of Beta(1 + s, 1 + n - s) at `count` nodes, in row n (n + 1) / 2 + s.

    With X_n ~ Binomial(n, x): the density is (n + 1) P(X_n = s), the distribution function P(X_{n+1} >= s + 1).
    """
    x = (special.roots_legendre(count)[0] + 1) / 2
    density = np.empty(((rounds + 1) * (rounds + 2) // 2, count))
    distribution = np.empty_like(density)
    point = np.ones((1, count))  # P(X_n = s), s = 0 .. n
    tail = np.stack([np.ones(count), x])  # P(X_{n+1} >= s), s = 0 .. n + 1
    for n in range(rounds + 1):
        rows = slice(n * (n + 1) // 2, (n + 1) * (n + 2) // 2)
        density[rows] = (n + 1) * point
        distribution[rows] = tail[1:]
        point = _one_more(point, x)
        tail = np.concatenate([np.ones((1, count)), _one_more(tail, x)[1:]])
    return density, distribution


def _one_more(values: Float64Array, x: Float64Array) -> Float64Array:
    """Q_{n+1}(s) = x Q_n(s - 1) + (1 - x) Q_n(s) from rows s = 0, 1, ...; one row more."""
    out = np.zeros((len(values) + 1, x.size))
    out[1:] = x * values
    out[:-1] += (1 - x) * values
    return out


def gaussian_best(mean: Float64Array, std: Float64Array) -> Float64Array:
    """P(action k is best), float64[B, A], for independent N(mean, std^2) with mean and std > 0 float64[B, A].

    Gauss-Legendre on pieces no longer than two standard deviations of any action whose distribution function still
    varies there: the absolute error is below 1e-10.
    """
    B, A = mean.shape
    nodes, weights = np.polynomial.legendre.leggauss(_ORDER)
    steps = np.arange(-_REACH, _REACH + 1.0, _STEP)
    out = np.empty((B, A))
    rows = max(1, _CHUNK // (A * A * steps.size * _ORDER))
    for first in range(0, B, rows):
        m, s = mean[first : first + rows, :, None], std[first : first + rows, :, None]
        ends = np.sort((m + s * steps).reshape(len(m), -1), axis=1)
        half = np.diff(ends, axis=1)[:, :, None] / 2
        x = ((ends[:, :-1, None] + half) + half * nodes).reshape(len(m), 1, -1)
        z = (x - m) / s
        density = np.exp(-z * z / 2) / (s * np.sqrt(2 * np.pi))
        weight = (half * weights).reshape(len(m), -1)
        out[first : first + rows] = _integrate(density.swapaxes(0, 1), special.ndtr(z).swapaxes(0, 1), weight)
    return _normalised(out)


def _normalised(values: Float64Array) -> Float64Array:
    scaled: Float64Array = values / values.sum(axis=1, keepdims=True)
    return scaled


def _integrate(density: Float64Array, distribution: Float64Array, weights: Float64Array) -> Float64Array:
    """float64[B, A]: sum over nodes of weights f_k prod_{j != k} F_j; f, F float64[A, B, N], weights [N] or [B, N].

    Products before and after k: a division by F_k would be 0 / 0 where it underflows.
    """
    A, B, _ = density.shape
    out = np.empty((B, A))
    after = np.empty_like(distribution)
    after[A - 1] = 1
    for k in range(A - 1, 0, -1):
        np.multiply(after[k], distribution[k], out=after[k - 1])
    before = np.broadcast_to(weights, density.shape[1:]).copy()
    for k in range(A):
        out[:, k] = (density[k] * before * after[k]).sum(axis=1)
        before *= distribution[k]
    return out
