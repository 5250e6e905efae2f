"""Thompson sampling for linear bandits as explicit weights (Thm 10): the posterior in the token, then what is read off it.

The paper assumes that log P(action k is best) can be approximated by an MLP and writes none down. Here:
    two_arms    A = 2: p_1 = Phi(u), u = (y_1 - y_2) / |x_1 - x_2|; the logit of p_1 is a function of u alone, so it is
                exact in the limit of many knots
    fitted      A > 2: the MLP of `orthant`, fitted once for each A to orthant probabilities, on u and correlations
    samples     a standard normal z_t in the state token, and the logits (y_k + <x_k, z_t>) / temperature: the action is
                that of Thompson sampling in law. Its tokens are not the theorem's, so it lies outside of it
with y_k = <mu_t, a_k> and x_k = sqrt(r) Sigma_t^{-1/2} a_k (`posterior`).
"""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Literal

import numpy as np
import torch
from scipy.special import log_ndtr

from icrl.algorithms.thompson import noise_variance
from icrl.config import LinearBanditConfig, ThompsonConfig
from icrl.constructions import orthant
from icrl.constructions.assemble import Construction, assemble
from icrl.constructions.inverse_root import root_steps_for
from icrl.constructions.layer import Layer
from icrl.constructions.newton_schulz import SLACK
from icrl.constructions.posterior import log_depth_posterior, log_depth_scratch, paper_posterior, paper_scratch
from icrl.constructions.primitives import add_product, piecewise_linear, update
from icrl.constructions.problem import RidgeProblem, ridge_problem
from icrl.constructions.stream import Stream, bandit_stream

CLIP = 6.0
"""|u| beyond which a pair of actions counts as decided: the loser's probability is 1e-9."""
NEVER = -1e4
"""Logit of an action that must not be played."""


def thompson(
    environment: LinearBanditConfig,
    algorithm: ThompsonConfig,
    *,
    read: Literal["two_arms", "fitted", "samples"],
    method: Literal["paper", "log_depth"] = "log_depth",
    tolerance: float = 1e-4,
    steps: int | None = None,
    terms: int = 8,
    separation: float = 0.1,
    knots: int = 200,
    temperature: float = 1e-6,
    dtype: torch.dtype = torch.float64,
) -> Construction:
    """The transformer that plays Thompson sampling in these environments.

    steps: iterations of the inverse root, or of gradient descent with method paper (None: what `tolerance` of
    sqrt(r) Sigma^{-1/2} asks for, and 160); terms: partial fractions of the paper's square root; separation: the least
    |a_j - a_k| that is resolved (Assumption C); knots: of 1/sqrt and of the logit.

    With read samples the transformer is one of A + 1 actions: it is shown the action set with z_t [d] as its last row,
    anew every round (`SampledThompson` does so), and never plays that row.

    Raises:
        ValueError: read two_arms with A > 2 or fitted with A = 2; a number out of its range.
    """
    A, d = environment.n_actions, environment.dim
    if (read == "two_arms") != (A == 2) and read != "samples":
        fits = "two_arms" if A == 2 else "fitted"
        raise ValueError(f"read = {read} with {A} actions: expected {fits} or samples")
    for name, value in (("tolerance", tolerance), ("separation", separation), ("temperature", temperature)):
        if not value > 0:
            raise ValueError(f"{name} = {value}: expected above 0")
    if knots < 2 or terms < 1:
        raise ValueError(f"knots = {knots}, terms = {terms}: expected at least 2 and 1")
    variance = noise_variance(algorithm, environment)
    problem = ridge_problem(environment, variance / algorithm.prior_variance)
    if steps is None:
        scale = np.sqrt(algorithm.prior_variance) * problem.action_bound
        steps = root_steps_for(problem.condition, tolerance / scale) if method == "log_depth" else 160
    pairs = A * (A - 1) // 2
    scratch = log_depth_scratch(problem) if method == "log_depth" else paper_scratch(problem, terms)
    match read:
        case "samples":
            environment = replace(environment, n_actions=A + 1)
            stream = Stream({"action": d, "reward": 1, "action_set": A * d, "z": d}, A + 1, scratch)
        case "two_arms" | "fitted":
            scratch |= {"distances": pairs, "inverse_roots": pairs, "u": pairs}
            scratch |= orthant.scratch(A) if read == "fitted" else {}
            stream = bandit_stream(d, A, scratch)
    if method == "log_depth":
        layers = log_depth_posterior(stream, problem, variance, steps)
    else:
        layers = paper_posterior(stream, problem, variance, terms, steps)
    if read == "samples":
        layers.append(_sampled(stream, problem, variance, temperature))
    else:
        distances, quotients = _compare(stream, problem, variance, separation, knots)
        layers += [distances, quotients]
        if read == "two_arms":
            layers.append(_two_arms(stream, knots))
        else:
            largest, least = _distance_bounds(problem, variance, separation)
            orthant.add_root_products(quotients, A, bound=SLACK / least)
            layers.append(orthant.read_out(stream, A, bound=1.5 * SLACK * largest / least))
    return assemble(environment, layers, dtype, method=f"{method}, {read}", choices={"steps": steps, "terms": terms})


def _sampled(stream: Stream, problem: RidgeProblem, variance: float, temperature: float) -> Layer:
    """(y_k + <x_k, z>) / temperature; |z| <= 8 sqrt(d) but for one draw in 10^14."""
    layer, d = Layer(stream), problem.dim
    bound = SLACK * np.sqrt(variance / problem.ridge) * problem.action_bound * 8 * np.sqrt(d)
    for k in range(problem.n_actions):
        spread = stream["spreads"][k * d : (k + 1) * d]
        add_product(layer, spread, stream["z"], (1 / temperature) * stream["logits"][k], bound=bound)
        update(layer, (1 / temperature) * stream["means"][k], stream["logits"][k])
    update(layer, (NEVER / temperature) * stream.one, stream["logits"][problem.n_actions])
    return layer


def _compare(
    stream: Stream, problem: RidgeProblem, variance: float, separation: float, knots: int
) -> tuple[Layer, Layer]:
    """u_jk = (y_j - y_k) / |x_j - x_k| of every pair j < k: distances and their 1/sqrt, then the quotient."""
    first, second = Layer(stream), Layer(stream)
    d = problem.dim
    largest, least = _distance_bounds(problem, variance, separation)
    x = np.geomspace(least, SLACK * largest, knots)
    bound = 2 * SLACK * problem.action_bound * problem.estimate_bound / np.sqrt(least)
    for pair, (j, k) in enumerate(combinations(range(problem.n_actions), 2)):
        apart = stream["spreads"][j * d : (j + 1) * d] - stream["spreads"][k * d : (k + 1) * d]
        add_product(first, apart, apart, stream["distances"][pair], bound=SLACK * largest, positive=True)
        piecewise_linear(first, stream["distances"][pair], list(x), list(x**-0.5), stream["inverse_roots"][pair])
        leads = stream["means"][j] - stream["means"][k]
        add_product(second, leads, stream["inverse_roots"][pair], stream["u"][pair], bound=bound)
    return first, second


def _distance_bounds(problem: RidgeProblem, variance: float, separation: float) -> tuple[float, float]:
    """The largest and least |x_j - x_k|^2 = r (a_j - a_k)' Sigma^{-1} (a_j - a_k)."""
    smooth = problem.ridge + problem.horizon * problem.action_bound**2
    return 4 * variance * problem.action_bound**2 / problem.ridge, variance * separation**2 / smooth


def _two_arms(stream: Stream, knots: int) -> Layer:
    """log Phi(u) - log Phi(-u) into the first logit."""
    layer = Layer(stream)
    u = np.linspace(-CLIP, CLIP, knots)
    piecewise_linear(layer, stream["u"], list(u), list(log_ndtr(u) - log_ndtr(-u)), stream["logits"][0])
    return layer
