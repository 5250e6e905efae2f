"""From the posterior to the logits (Thm 10, step 4): the probability that an action is best, in three ways.

All read the blocks `means` y_k and `spreads` x_k; u_jk = (y_j - y_k) / |x_j - x_k|.
"""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
from scipy.special import log_ndtr, ndtri

from icrl.constructions import orthant
from icrl.constructions.layer import Layer
from icrl.constructions.newton_schulz import SLACK
from icrl.constructions.primitives import add_product, piecewise_linear, update
from icrl.constructions.problem import RidgeProblem
from icrl.constructions.stream import Stream

NORMAL_REACH = 8.0
"""|z_t| <= sqrt(d) + this, but for a draw in 10^14."""


def pairs_scratch(n_actions: int) -> dict[str, int]:
    """Blocks of `compared`, one number a pair j < k."""
    pairs = n_actions * (n_actions - 1) // 2
    return {"distances": pairs, "inverse_roots": pairs, "u": pairs}


def distance_bounds(problem: RidgeProblem, variance: float, separation: float) -> tuple[float, float]:
    """The largest and least |x_j - x_k|^2 = r (a_j - a_k)' Sigma^{-1} (a_j - a_k)."""
    smooth = problem.ridge + problem.horizon * problem.action_bound**2
    return 4 * variance * problem.action_bound**2 / problem.ridge, variance * separation**2 / smooth


def compared(
    stream: Stream, problem: RidgeProblem, variance: float, separation: float, knots: int
) -> tuple[Layer, Layer]:
    """Two layers: |x_j - x_k|^2 and 1/sqrt of it by `knots` chords a pair, then u_jk by a product."""
    first, second = Layer(stream), Layer(stream)
    d = problem.dim
    largest, least = distance_bounds(problem, variance, separation)
    x = np.geomspace(least, SLACK * largest, knots)
    roots = (x**-0.5).tolist()
    bound = 2 * SLACK * problem.action_bound * problem.estimate_bound / math.sqrt(least)
    for pair, (j, k) in enumerate(combinations(range(problem.n_actions), 2)):
        apart = stream["spreads"][j * d : (j + 1) * d] - stream["spreads"][k * d : (k + 1) * d]
        add_product(first, apart, apart, stream["distances"][pair], bound=SLACK * largest, positive=True)
        piecewise_linear(first, stream["distances"][pair], x.tolist(), roots, stream["inverse_roots"][pair])
        leads = stream["means"][j] - stream["means"][k]
        add_product(second, leads, stream["inverse_roots"][pair], stream["u"][pair], bound=bound)
    return first, second


def two_arms(stream: Stream, floor: float, knots: int) -> Layer:
    """A = 2: log Phi(u) - log Phi(-u) into the first logit by chords; probabilities below `floor` count as it."""
    layer = Layer(stream)
    reach = -float(ndtri(floor))
    u = np.linspace(-reach, reach, knots)
    piecewise_linear(layer, stream["u"], u.tolist(), (log_ndtr(u) - log_ndtr(-u)).tolist(), stream["logits"][0])
    return layer


def fitted(
    stream: Stream, problem: RidgeProblem, variance: float, separation: float, knots: int, fit: orthant.Fit
) -> list[Layer]:
    """A > 2: correlations beside u, then the MLP of `orthant`."""
    largest, least = distance_bounds(problem, variance, separation)
    distances, quotients = compared(stream, problem, variance, separation, knots)
    orthant.add_root_products(quotients, problem.n_actions, bound=SLACK / least)
    bound = 1.5 * SLACK**2 * largest / least
    return [distances, quotients, orthant.read_out(stream, problem.n_actions, bound, fit)]


def sampled(stream: Stream, problem: RidgeProblem, variance: float, temperature: float) -> Layer:
    """(y_k + <x_k, z>) / temperature for a standard normal z in the token; row A, which is z, gets the lowest logit."""
    layer, d = Layer(stream), problem.dim
    spread = SLACK * math.sqrt(variance / problem.ridge) * problem.action_bound
    bound = spread * (math.sqrt(d) + NORMAL_REACH)
    logits = (1 / temperature) * stream["logits"]
    for k in range(problem.n_actions):
        add_product(layer, stream["spreads"][k * d : (k + 1) * d], stream["z"], logits[k], bound=bound)
    update(layer, stream["means"], logits[: problem.n_actions])
    never = 2 * (bound + SLACK * problem.action_bound * problem.estimate_bound) + 1000 * temperature
    update(layer, -never * stream.one, logits[problem.n_actions])
    return layer
