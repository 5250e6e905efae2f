"""Soft LinUCB (Thm 8) as explicit weights.

Logits (<w_t, a_k> + confidence sqrt(a_k' A_t^{-1} a_k)) / temperature at the token that asks for the action of round t,
A_t = ridge I + sum_{j<t} a_j a_j', w_t = A_t^{-1} sum_{j<t} a_j r_j.
Blocks of the stream to probe: ridge_estimate w_t [d], directions A_t^{-1} a_k [A d], widths a_k' A_t^{-1} a_k [A]; with
the methods of logarithmic depth also inverse A_t^{-1} [d d] (times 2 / (1 + m), `Schedule.centre`).
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch

from icrl.config import BanditConfig
from icrl.constructions import accelerated_gradient, newton_schulz
from icrl.constructions.accelerated_gradient import System, accelerated_gradient_step
from icrl.constructions.assemble import Construction, assemble
from icrl.constructions.error_budget import SLACK, ErrorBudget
from icrl.constructions.form import Form
from icrl.constructions.layer import Layer
from icrl.constructions.primitives import add_product, add_scaled_product, piecewise_linear, update
from icrl.constructions.problem import (
    RidgeProblem,
    require_bandit,
    require_exact_positions,
    require_one_of,
    require_positive,
    require_whole,
    ridge_problem,
)
from icrl.constructions.roots import square_root_knots
from icrl.constructions.stream import bandit_stream

MOST_NEURONS = 2**16
"""The largest D' of a model's config."""

Method = Literal["paper", "newton_schulz", "log_depth"]


def linucb(
    environment: BanditConfig,
    *,
    ridge: float = 1.0,
    confidence: float = 2.0,
    temperature: float = 1.0,
    method: Method = "paper",
    tolerance: float = 1e-3,
    ridge_layers: int | None = None,
    knots: int | None = None,
    action_bound: float | None = None,
    reward_bound: float | None = None,
    dtype: torch.dtype = torch.float64,
) -> Construction:
    """The transformer whose policy is soft LinUCB's up to `tolerance` in every log-probability.

    method: how A_t^{-1} comes about. paper: accelerated gradient descent, a step a layer, L = ridge_layers + 2;
    newton_schulz and log_depth: Newton-Schulz steps on A_t itself, plain and with the best quadratics, a step a layer,
    L = ridge_layers + 3.
    ridge_layers and knots (of the square root) follow from `tolerance` and `dtype` unless they are given: sizes that
    are guaranteed for every history within the bounds. Fewer layers often do on the histories that are met
    (docs/theory). With sizes that are given only `report.choices["guaranteed"]` holds, which may be above `tolerance`.
    action_bound B_a >= |a| and reward_bound R >= |r| follow from the environment unless given; Gaussian noise is
    assumed to stay within 6 standard deviations. Beyond the bounds nothing is promised.

    Raises:
        ValueError: no bandit with a fixed action set, an unknown method, a number out of its range, a tolerance below
            what rounding in `dtype` costs, or a horizon whose positions `dtype` does not hold exactly.
    """
    require_bandit(environment)
    require_one_of("method", method, get_args(Method))
    require_whole(ridge_layers=ridge_layers, knots=knots)
    require_positive(ridge=ridge, temperature=temperature, tolerance=tolerance, ridge_layers=ridge_layers, knots=knots)
    if knots == 1:
        raise ValueError("knots = 1: expected at least 2, the ends of one chord")
    if not (confidence >= 0 and math.isfinite(confidence)):
        raise ValueError(f"confidence = {confidence}: expected a number >= 0")
    problem = ridge_problem(environment, ridge, action_bound, reward_bound)
    require_exact_positions(problem, dtype)
    budget = ErrorBudget(problem, confidence, temperature, dtype, tolerance)
    pieces = knots - 1 if knots else budget.pieces()
    _require_room(environment.n_actions, pieces, tolerance)
    plain = method == "newton_schulz"
    if method == "paper":
        steps = ridge_layers or accelerated_gradient.steps_for(problem, budget.residual())
        residual = accelerated_gradient.residual(problem, steps)
        layers = _paper_layers(problem, confidence, temperature, steps, pieces)
    else:
        steps = ridge_layers or newton_schulz.steps_for(problem.condition, budget.residual(), plain=plain)
        schedule = newton_schulz.schedule(problem.condition, steps, plain=plain)
        residual = schedule.error
        layers = _inverse_layers(problem, confidence, temperature, schedule, pieces)
    guaranteed = budget.guaranteed(residual, pieces)
    epsilon = tolerance * temperature / (12 * problem.action_bound)
    return assemble(
        environment,
        layers,
        dtype,
        method=method,
        choices={"ridge_layers": steps, "knots": pieces + 1, "residual": residual, "guaranteed": guaranteed},
        theorem={
            "layers": accelerated_gradient.theorem_steps(problem, epsilon) + 2,
            "heads": 4 * problem.n_actions,
            "condition": problem.theorem_condition,
        },
    )


def _require_room(n_actions: int, pieces: int, tolerance: float) -> None:
    most = MOST_NEURONS // n_actions - 1
    if pieces > most:
        raise ValueError(
            f"tolerance = {tolerance:g}: its square roots take {pieces + 1} knots for each of {n_actions} actions, "
            f"expected at most {most + 1} (D' <= {MOST_NEURONS}); raise the tolerance, or give the number of knots"
        )


def _paper_layers(problem: RidgeProblem, confidence: float, temperature: float, steps: int, pieces: int) -> list[Layer]:
    """Steps 1 and 2 of section 2.2 in the same layers, then step 3 in two.

    Of the 4 + 4A heads the 2 + 2A gates have two different scores: M = 4 + 2A, in step 3 M = 3A.
    """
    d, A = problem.dim, problem.n_actions
    unknowns = {"ridge_estimate": d, "ridge_previous": d, "ridge_momentum": d}
    unknowns |= {"directions": A * d, "directions_previous": A * d, "directions_momentum": A * d}
    stream = bandit_stream(d, A, unknowns | {"means": A, "widths": A, "roots": A})
    systems = [System(stream["ridge_estimate"], stream["ridge_previous"], stream["ridge_momentum"])]
    for k in range(A):
        part = slice(k * d, (k + 1) * d)
        names = ("directions", "directions_previous", "directions_momentum", "action_set")
        systems.append(System(*(stream[name][part] for name in names)))
    step = accelerated_gradient_step(stream, problem, systems)
    read = Layer(stream)
    _add_indices(read, problem, stream["means"])
    _add_roots(read, problem, pieces, stream["roots"])
    out = Layer(stream)
    update(out, (1 / temperature) * (stream["means"] + confidence * stream["roots"]), stream["logits"])
    return [*[step] * steps, read, out]


def _inverse_layers(
    problem: RidgeProblem, confidence: float, temperature: float, schedule: newton_schulz.Schedule, pieces: int
) -> list[Layer]:
    """Moments, Newton-Schulz steps, A^{-1} times a vector, indices: no part waits for another layer than it must."""
    d, A = problem.dim, problem.n_actions
    scratch = {"moment": d, "image": d * d, "inverse": d * d, "ridge_estimate": d, "directions": A * d, "widths": A}
    stream = bandit_stream(d, A, scratch)
    inverse = newton_schulz.Matrix(stream, "inverse", d)
    solve = Layer(stream)
    reach = SLACK * problem.action_bound / problem.ridge
    for p in range(d):
        row = schedule.centre * inverse.row(p)
        for k in range(A):
            action = stream["action_set"][k * d : (k + 1) * d]
            add_product(solve, row, action, stream["directions"][k * d + p], bound=reach)
        # the moment carries 1/i and is at most B_a R / 2; the value i^2 takes that back
        bound = reach * problem.reward_bound / 2
        add_scaled_product(solve, row, stream["moment"], stream.square, stream["ridge_estimate"][p], bound=bound)
    read = Layer(stream)
    _add_indices(read, problem, (1 / temperature) * stream["logits"])
    _add_roots(read, problem, pieces, (confidence / temperature) * stream["logits"])
    steps = newton_schulz.inversion(stream, problem, schedule.steps)
    return [newton_schulz.moments(stream, problem), *steps, solve, read]


def _add_indices(layer: Layer, problem: RidgeProblem, means: Form) -> None:
    """means[k] += <w, a_k>, widths[k] += <A^{-1} a_k, a_k>."""
    stream, d = layer.stream, problem.dim
    for k in range(problem.n_actions):
        part = slice(k * d, (k + 1) * d)
        action, direction = stream["action_set"][part], stream["directions"][part]
        bound = SLACK * problem.action_bound * problem.estimate_bound
        add_product(layer, stream["ridge_estimate"], action, means[k], bound=bound)
        add_product(layer, direction, action, stream["widths"][k], bound=SLACK * problem.width_bound, positive=True)


def _add_roots(layer: Layer, problem: RidgeProblem, pieces: int, into: Form) -> None:
    """into[k] += sqrt(widths[k]) by chords."""
    knots, values = square_root_knots(SLACK * problem.width_bound, pieces)
    for k in range(problem.n_actions):
        piecewise_linear(layer, layer.stream["widths"][k], knots, values, into[k])
