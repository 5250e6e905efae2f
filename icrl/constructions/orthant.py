"""P(action k is best) for A > 2 by one hidden layer: the ReLU approximation that Assumption B asks for.

Action k is best when A - 1 jointly normal numbers are positive, with means u_kj = (y_k - y_j) / |x_k - x_j| and the
correlations rho of the x_k - x_j. Their probability is a function of u and rho alone. `fit` finds it once for each A,
for every environment.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import log_ndtr, ndtr, ndtri
from torch import Tensor

from icrl.constructions.layer import Layer
from icrl.constructions.primitives import add_product, piecewise_linear
from icrl.constructions.stream import Stream

Array = npt.NDArray[np.float64]

REACH = 5.0
"""|u| is clipped here: the probability beyond is below 3e-7."""
MOST_ACTIONS = 8
"""A up to which a fit is tried: its inputs grow with A^2, and orthant probabilities get harder."""
_KNOTS = 10
_STEPS = 1000
_BATCH = 256
_POINTS = 6000


@dataclass(frozen=True)
class Fit:
    """logit_k = sum_m out_m relu(weights_m [u_k; rho_k; 1]), the same for every k; P = softmax of the logits."""

    weights: Array
    """float64[M_0, n + 1], n = (A - 1) + (A - 1)(A - 2) / 2."""
    out: Array
    """float64[M_0]."""
    divergence: float
    """Mean KL(exact || fit) over points that were not fitted."""
    largest: float
    """Largest |difference of probability| there."""


def scratch(n_actions: int) -> dict[str, int]:
    """Blocks of `read_out`: of every pair the clipped u; of every k and pair of rivals what becomes rho."""
    triples = len(list(_triples(n_actions)))
    pairs = n_actions * (n_actions - 1) // 2
    return {"clipped": pairs, "root_products": triples, "correlations": triples}


def add_root_products(layer: Layer, n_actions: int, bound: float) -> None:
    """root_products = 1 / (|x_k - x_i| |x_k - x_j|), beside the layer that makes u, which its MLP clips."""
    stream = layer.stream
    for place, (k, i, j) in enumerate(_triples(n_actions)):
        x, y = (stream["inverse_roots"][_pair(n_actions, k, other)] for other in (i, j))
        add_product(layer, x, y, stream["root_products"][place], bound=bound, positive=True)
    for pair in range(n_actions * (n_actions - 1) // 2):
        piecewise_linear(layer, stream["u"][pair], [-REACH, REACH], [-REACH, REACH], stream["clipped"][pair])


def read_out(stream: Stream, n_actions: int, bound: float, fitted: Fit) -> Layer:
    """Correlations by attention, rho = (q_ki + q_kj - q_ij) / (2 |x_k - x_i| |x_k - x_j|), then the fit of every k."""
    layer = Layer(stream)
    distance = stream["distances"]
    triples = list(_triples(n_actions))
    for place, (k, i, j) in enumerate(triples):
        first, second, third = (distance[_pair(n_actions, *pair)] for pair in ((k, i), (k, j), (i, j)))
        half = 0.5 * (first + second - third)
        add_product(layer, half, stream["root_products"][place], stream["correlations"][place], bound=bound)
    for k in range(n_actions):
        inputs = []
        for j in range(n_actions):
            if j != k:
                u = stream["clipped"][_pair(n_actions, k, j)]
                inputs.append(u if k < j else -u)
        inputs += [stream["correlations"][place] for place, triple in enumerate(triples) if triple[0] == k]
        inputs.append(stream.one)
        for row, out in zip(fitted.weights, fitted.out, strict=True):
            total = float(row[0]) * inputs[0]
            for weight, part in zip(row[1:], inputs[1:], strict=True):
                total = total + float(weight) * part
            layer.neurons(total, float(out) * stream["logits"][k])
    return layer


def _triples(n_actions: int) -> Iterator[tuple[int, int, int]]:
    """k and two rivals i < j, for every k in turn."""
    for k in range(n_actions):
        for i, j in combinations([rival for rival in range(n_actions) if rival != k], 2):
            yield k, i, j


def _pair(n_actions: int, j: int, k: int) -> int:
    """Place of {j, k} among the pairs in lexicographic order."""
    return list(combinations(range(n_actions), 2)).index((min(j, k), max(j, k)))


@lru_cache(maxsize=4)
def fit(n_actions: int) -> Fit:
    """The fit for A actions: a function of A alone, found in seconds by minimising KL(exact || fit) with Adam.

    The first neurons are the chords of log Phi(u_kj), whose sum is log P for rho = 0; the others start at random.
    """
    rng = np.random.default_rng(n_actions)
    inputs, exact = (torch.from_numpy(x).float() for x in _points(rng, _POINTS, n_actions))
    weights, out = (torch.from_numpy(x).float().requires_grad_() for x in _start(rng, n_actions))
    optimiser = torch.optim.Adam([weights, out])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.02, total_steps=_STEPS)
    for batch in rng.integers(_POINTS, size=(_STEPS, _BATCH)):
        loss = _divergence(_log_share(inputs[batch], weights, out), exact[batch]).mean()
        weights.grad, out.grad = torch.autograd.grad(loss, [weights, out])
        optimiser.step()
        schedule.step()
    unseen, wanted = (torch.from_numpy(x).float() for x in _points(rng, _POINTS, n_actions))
    with torch.no_grad():
        found = _log_share(unseen, weights, out)
        divergence, largest = _divergence(found, wanted).mean().item(), (found.exp() - wanted).abs().max().item()
        return Fit(weights.double().numpy(), out.double().numpy(), divergence, largest)


def _log_share(inputs: Tensor, weights: Tensor, out: Tensor) -> Tensor:
    return ((inputs @ weights.T).relu() @ out).log_softmax(-1)


def _divergence(found: Tensor, exact: Tensor) -> Tensor:
    return (torch.xlogy(exact, exact) - exact * found).sum(-1)


def _start(rng: np.random.Generator, n_actions: int) -> tuple[Array, Array]:
    """Weights [M_0, n + 1] and out [M_0] of the chords, and of 50 (A - 1) random neurons."""
    rivals = n_actions - 1
    n = rivals + rivals * (rivals - 1) // 2
    knots = np.linspace(-REACH, REACH, _KNOTS + 1)
    slopes = np.diff(log_ndtr(knots)) / np.diff(knots)
    chords = np.zeros((rivals, _KNOTS, n + 1))
    for j in range(rivals):
        chords[j, :, j] = 1
    chords[:, :, -1] = -knots[:-1]
    bends = np.tile(np.diff(slopes, prepend=0.0), rivals)
    others = rng.normal(size=(50 * rivals, n + 1)) / np.sqrt(n)
    others[:, -1] = 0.5 - 2 * rng.uniform(size=len(others))
    return (
        np.concatenate([chords.reshape(-1, n + 1), others]),
        np.concatenate([bends, rng.normal(scale=0.02, size=len(others))]),
    )


def _points(rng: np.random.Generator, n: int, n_actions: int) -> tuple[Array, Array]:
    """Inputs [n, A, inputs] and P(k is best) [n, A] of random x_k and y_k, from nearly sure to nearly even."""
    A = n_actions
    x = rng.normal(size=(n, A, A)) * np.exp(rng.uniform(-2, 0.5, size=(n, 1, A)))
    y = rng.normal(size=(n, A)) * np.exp(rng.uniform(-2, 2, size=(n, 1)))
    u, rho = standardised(x, y)
    probability = orthant_probability(u.reshape(n * A, A - 1), rho.reshape(n * A, A - 1, A - 1), 128).reshape(n, A)
    inputs = np.concatenate([np.clip(u, -REACH, REACH), rho[:, :, *np.triu_indices(A - 1, 1)], np.ones((n, A, 1))], 2)
    return inputs, probability / probability.sum(1, keepdims=True)


def standardised(x: Array, y: Array) -> tuple[Array, Array]:
    """u float64[n,A,A-1] and correlations [n,A,A-1,A-1] of every action's rivals, of x [n,A,d] and y [n,A]."""
    A = y.shape[1]
    means, correlations = [], []
    for k in range(A):
        others = [j for j in range(A) if j != k]
        apart = x[:, k : k + 1] - x[:, others]
        distance = np.linalg.norm(apart, axis=2)
        apart /= distance[..., None]
        means.append((y[:, k : k + 1] - y[:, others]) / distance)
        correlations.append(apart @ apart.transpose(0, 2, 1))
    return np.stack(means, 1), np.stack(correlations, 1)


def orthant_probability(mean: Array, correlation: Array, draws: int = 256) -> Array:
    """P(z >= 0) float64[n] of z ~ N(mean [n,m], correlation [n,m,m]): separation of variables (Genz), Sobol points."""
    n, m = mean.shape
    lower = np.linalg.cholesky(correlation + 1e-9 * np.eye(m))
    from scipy.stats import qmc  # a second, for those who fit

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
