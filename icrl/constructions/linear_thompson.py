"""Thompson sampling for linear bandits as explicit weights (Thm 10): the posterior in the token, then a read-out.

The paper assumes that log P(action k is best) can be approximated by an MLP and writes none down. Here:
    two_arms    A = 2: P = Phi(u), u = (y_1 - y_2) / |x_1 - x_2|, by chords: exact in the limit of many knots
    fitted      A > 2: one hidden layer, fitted once for each A to orthant probabilities (`orthant`)
    samples     a standard normal z_t in the token that asks, and the logits (y_k + <x_k, z_t>) / temperature: the
                action is that of Thompson sampling in law (`SampledThompson`). Its tokens lie outside of the theorem
with y_k = <mu_t, a_k> in block `means` and x_k = sqrt(r) Sigma_t^{-1/2} a_k in block `spreads` (`posterior`).
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import islice
from typing import Literal, get_args

import torch

from icrl.algorithms import noise_variance
from icrl.config import EnvironmentConfig, LinearBanditConfig, ThompsonConfig
from icrl.constructions import best_action, orthant, pade
from icrl.constructions.assemble import Construction, assemble
from icrl.constructions.inverse_root import root_schedule, root_steps_for
from icrl.constructions.posterior import log_depth_posterior, log_depth_scratch, paper_posterior, paper_scratch
from icrl.constructions.problem import (
    RidgeProblem,
    require_exact_positions,
    require_one_of,
    require_positive,
    require_whole,
    ridge_problem,
)
from icrl.constructions.stream import Stream, bandit_stream
from icrl.tokens import tokenizer_of

Read = Literal["two_arms", "fitted", "samples"]
Method = Literal["paper", "log_depth"]


def thompson(
    environment: EnvironmentConfig,
    algorithm: ThompsonConfig,
    *,
    read: Read,
    method: Method = "log_depth",
    tolerance: float = 1e-4,
    steps: int | None = None,
    terms: int | None = None,
    separation: float = 0.1,
    knots: int = 200,
    floor: float = 1e-9,
    temperature: float = 1e-6,
    action_bound: float | None = None,
    reward_bound: float | None = None,
    dtype: torch.dtype = torch.float64,
) -> Construction:
    """The transformer that plays Thompson sampling in these environments.

    method: how Sigma_t^{-1/2} comes about. paper: the square root by Pade and gradient descent, L = 4 + 2 steps and
    more; log_depth: the inverse root of the matrix in the token, L = 3 + 2 steps and what `read` takes (1 or 3).
    tolerance: of every sqrt(r) Sigma_t^{-1/2} a, for every history within the bounds; steps (of the inverse root, or of
    each gradient descent) and terms (partial fractions of the paper's root) follow from it unless given.
    separation: the least |a_j - a_k| that is told apart (Assumption C); knots: of 1/sqrt and of the logit; floor:
    probabilities below it count as it, with two_arms (eta_1).
    action_bound B_a >= |a| and reward_bound R >= |r| follow from the environment unless given.

    With read samples the transformer is one of A + 1 actions: it is shown the action set with z_t [d] as its last row,
    anew every round (`SampledThompson` does so), and never plays that row.

    Raises:
        ValueError: no linear bandit with a fixed action set and a noise variance, a read that does not fit A, a number
            out of its range, a tolerance below what `dtype` reaches, a horizon whose positions it does not hold.
    """
    if not isinstance(environment, LinearBanditConfig):
        raise ValueError(
            f"environment.kind = {environment.kind}: expected linear_bandit; beta_thompson takes bernoulli_bandit"
        )
    tokenizer_of(environment, "paper")
    A, d = environment.n_actions, environment.dim
    _require_options(A, read, method, knots, floor)
    require_whole(steps=steps, terms=terms, knots=knots)
    require_positive(tolerance=tolerance, separation=separation, temperature=temperature, steps=steps, terms=terms)
    variance = noise_variance(algorithm, environment)
    require_positive(noise_variance=variance)
    problem = ridge_problem(environment, variance / algorithm.prior_variance, action_bound, reward_bound)
    if separation > 2 * problem.action_bound:
        raise ValueError(f"separation = {separation:g}: expected at most 2 B_a = {2 * problem.action_bound:g}")
    require_exact_positions(problem, dtype)
    if steps is None:
        _require_reachable(problem, variance, tolerance, dtype)
    if method == "log_depth":
        steps = steps or root_steps_for(problem.condition, tolerance / _scale(problem, variance))
        posterior = log_depth_scratch(problem)
        guaranteed = _scale(problem, variance) * root_schedule(problem.condition, steps).error
        choices = {"steps": steps, "guaranteed": guaranteed}
    else:
        terms = terms or pade.terms_for(problem, variance, tolerance / 4)
        steps = steps or pade.steps_for(problem, variance, terms, tolerance)
        posterior = paper_scratch(problem, terms)
        errors = pade.spread_errors(problem, variance, pade.Pade.of(problem, terms))
        choices = {"steps": steps, "terms": terms, "guaranteed": next(islice(errors, steps - 1, None))}
    if read == "samples":
        environment = replace(environment, n_actions=A + 1)
        stream = Stream({"action": d, "reward": 1, "action_set": A * d, "z": d}, A + 1, posterior)
        last = [best_action.sampled(stream, problem, variance, temperature)]
    elif read == "two_arms":
        stream = bandit_stream(d, A, posterior | best_action.pairs_scratch(A))
        last = [*best_action.compared(stream, problem, variance, separation, knots)]
        last.append(best_action.two_arms(stream, floor, knots))
    else:
        fit = orthant.fit(A)
        stream = bandit_stream(d, A, posterior | best_action.pairs_scratch(A) | orthant.scratch(A))
        last = best_action.fitted(stream, problem, variance, separation, knots, fit)
        choices |= {"fit_neurons": len(fit.out), "fit_divergence": fit.divergence, "fit_largest": fit.largest}
    theorem = {
        "layers": pade.theorem_layers(problem, tolerance),
        "terms": pade.theorem_terms(problem, tolerance),
        "condition": problem.theorem_condition / 2,
    }
    if method == "log_depth":
        layers = log_depth_posterior(stream, problem, variance, steps)
    else:
        layers = paper_posterior(stream, problem, variance, int(choices["terms"]), steps)
    return assemble(environment, [*layers, *last], dtype, method=f"{method}, {read}", choices=choices, theorem=theorem)


def _require_options(n_actions: int, read: str, method: str, knots: int, floor: float) -> None:
    require_one_of("method", method, get_args(Method))
    fits = "two_arms" if n_actions == 2 else "fitted"
    if read not in (fits, "samples"):
        raise ValueError(f"read = {read!r} with {n_actions} actions: expected {fits} or samples")
    if read == "fitted" and n_actions > orthant.MOST_ACTIONS:
        raise ValueError(
            f"read = fitted with {n_actions} actions: expected at most {orthant.MOST_ACTIONS}; read = samples takes any"
        )
    if knots < 2:
        raise ValueError(f"knots = {knots}: expected at least 2, the ends of one chord")
    if not 0 < floor < 0.5:
        raise ValueError(f"floor = {floor}: expected a probability above 0 and below 1/2")


def _scale(problem: RidgeProblem, variance: float) -> float:
    """The largest |sqrt(r) Sigma^{-1/2} a|."""
    return math.sqrt(variance / problem.ridge) * problem.action_bound


def _require_reachable(problem: RidgeProblem, variance: float, tolerance: float, dtype: torch.dtype) -> None:
    """ValueError when rounding alone may cost more on some history: 4 eps kappa of the largest spread."""
    least = 4 * torch.finfo(dtype).eps * problem.condition * _scale(problem, variance)
    if tolerance < least:
        raise ValueError(
            f"tolerance = {tolerance:g}: {dtype} reaches {least:.2g} with condition number {problem.condition:.3g} "
            "whatever the history; raise it, take torch.float64, or give the number of steps"
        )
