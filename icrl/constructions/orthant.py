"""log P(action k is best) for A > 2 as one hidden layer: the ReLU approximation that Assumption B asks for.

Action k is best when A - 1 jointly normal numbers are positive, with means u_kj = (y_k - y_j) / |x_k - x_j| and the
correlations rho_jl of the x_k - x_j. Their log-probability depends on u and rho alone: it is fitted once for each A, for
every environment, by least squares on ReLU features with random weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri
from scipy.stats import qmc

from icrl.constructions.layer import Layer
from icrl.constructions.primitives import add_product, piecewise_linear
from icrl.constructions.stream import Stream

Array = npt.NDArray[np.float64]

REACH = 5.0
"""|u| is clipped here: the probability beyond is below 3e-7."""
FLOOR = 1e-4
"""Probabilities below it count as it (eta_1 of the paper)."""
NEURONS = 800
_POINTS = 8000


@dataclass(frozen=True)
class Fit:
    """log p = sum_m out_m relu(weights_m [u; rho; 1])."""

    weights: Array
    """float64[M, n + 1], n = (A - 1) + (A - 1)(A - 2) / 2."""
    out: Array
    """float64[M]."""
    root_mean_square: float
    """Error of log p on points that were not fitted."""


def scratch(n_actions: int) -> dict[str, int]:
    """Blocks of `layers`, for every k and pair j < l of its rivals; and the clipped u."""
    triples = n_actions * len(_rivals(n_actions, 0))
    pairs = n_actions * (n_actions - 1) // 2
    return {"clipped": pairs, "root_products": triples, "correlations": triples}


def _rivals(n_actions: int, k: int) -> list[tuple[int, int]]:
    return list(combinations([j for j in range(n_actions) if j != k], 2))


def add_root_products(layer: Layer, n_actions: int, bound: float) -> None:
    """root_products = 1 / (|x_k - x_j| |x_k - x_l|), beside the layer that makes u, which its MLP clips."""
    stream = layer.stream
    for place, (k, j, l) in enumerate(_triples(n_actions)):
        roots = (stream["inverse_roots"][_pair(n_actions, k, other)] for other in (j, l))
        add_product(layer, *roots, stream["root_products"][place], bound=bound, positive=True)
    for pair in range(n_actions * (n_actions - 1) // 2):
        piecewise_linear(layer, stream["u"][pair], [-REACH, REACH], [-REACH, REACH], stream["clipped"][pair])


def read_out(stream: Stream, n_actions: int, bound: float) -> Layer:
    """Correlations by attention, rho = (q_kj + q_kl - q_jl) / (2 |x_k - x_j| |x_k - x_l|), then the fit of every k."""
    layer = Layer(stream)
    distance = stream["distances"]
    triples = list(_triples(n_actions))
    for place, (k, j, l) in enumerate(triples):
        pairs = [_pair(n_actions, *pair) for pair in ((k, j), (k, l), (j, l))]
        twice = distance[pairs[0]] + distance[pairs[1]] - distance[pairs[2]]
        add_product(layer, 0.5 * twice, stream["root_products"][place], stream["correlations"][place], bound=bound)
    fitted = fit(n_actions)
    for k in range(n_actions):
        leads = []
        for j in range(n_actions):
            if j != k:
                u = stream["clipped"][_pair(n_actions, k, j)]
                leads.append(u if k < j else -u)
        rho = [stream["correlations"][place] for place, triple in enumerate(triples) if triple[0] == k]
        inputs = [*leads, *rho, stream.one]
        for row, out in zip(fitted.weights, fitted.out, strict=True):
            total = float(row[0]) * inputs[0]
            for weight, part in zip(row[1:], inputs[1:], strict=True):
                total = total + float(weight) * part
            layer.neurons(total, float(out) * stream["logits"][k])
    return layer


def _triples(n_actions: int) -> Iterator[tuple[int, int, int]]:
    for k in range(n_actions):
        for j, l in _rivals(n_actions, k):
            yield k, j, l


def _pair(n_actions: int, j: int, k: int) -> int:
    """Place of {j, k} among the pairs in lexicographic order."""
    return list(combinations(range(n_actions), 2)).index((min(j, k), max(j, k)))


@lru_cache(maxsize=4)
def fit(n_actions: int) -> Fit:
    """The fit for A actions; a function of A alone."""
    rng = np.random.default_rng(n_actions)
    u, rho = _points(rng, 2 * _POINTS, n_actions)
    target = np.log(np.maximum(orthant_probability(u, rho), FLOOR))
    rivals = np.triu_indices(n_actions - 1, 1)
    inputs = np.column_stack([u, rho[:, *rivals], np.ones(len(u))])
    weights = rng.normal(size=(NEURONS, inputs.shape[1]))
    weights[:, : n_actions - 1] /= REACH / 2
    features = np.maximum(inputs @ weights.T, 0)
    seen, unseen = slice(0, _POINTS), slice(_POINTS, None)
    ridge = 1e-6 * np.eye(NEURONS)
    out = np.linalg.solve(features[seen].T @ features[seen] + ridge, features[seen].T @ target[seen])
    error = features[unseen] @ out - target[unseen]
    return Fit(weights, out, float(np.sqrt(np.mean(error**2))))


def _points(rng: np.random.Generator, n: int, n_actions: int) -> tuple[Array, Array]:
    """Means [n, A - 1] and correlation matrices [n, A - 1, A - 1] of differences of random vectors."""
    x = rng.normal(size=(n, n_actions, n_actions)) * rng.gamma(1.0, size=(n, 1, n_actions))
    apart = x[:, :1] - x[:, 1:]
    apart /= np.linalg.norm(apart, axis=2, keepdims=True)
    u = np.clip(rng.normal(scale=REACH / 2, size=(n, n_actions - 1)), -REACH, REACH)
    return u, apart @ apart.transpose(0, 2, 1)


def orthant_probability(mean: Array, correlation: Array, draws: int = 256) -> Array:
    """P(z >= 0) float64[n] of z ~ N(mean [n,m], correlation [n,m,m]): separation of variables (Genz), Sobol points."""
    n, m = mean.shape
    lower = np.linalg.cholesky(correlation + 1e-9 * np.eye(m))
    points = qmc.Sobol(max(1, m - 1), rng=0).random(draws)
    weight = np.ones((n, draws))
    z = np.zeros((n, draws, m))
    for row in range(m):
        shift = mean[:, None, row] + np.einsum("nj,ndj->nd", lower[:, row, :row], z[:, :, :row])
        inside = ndtr(shift / lower[:, None, row, row])
        weight *= inside
        if row < m - 1:  # a draw of z_row given that it is positive
            z[:, :, row] = ndtri(np.clip(1 - inside * (1 - points[None, :, row]), 1e-12, 1 - 1e-12))
    probability: Array = weight.mean(axis=1)
    return probability
