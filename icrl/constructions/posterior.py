"""What Thompson sampling for linear bandits draws from, in the token (Thm 10, steps 1 to 3).

The blocks `means` [A] = <mu_t, a_k> and `spreads` [A d] = sqrt(r) Sigma_t^{-1/2} a_k, Sigma_t = (r / lambda) I +
sum_{j<t} a_j a_j' and mu_t = Sigma_t^{-1} sum a_j r_j: the index of action k is <mu_t, a_k> + <spread_k, z>, z normal.

`paper_posterior`: accelerated gradient descent, the square root by Pade, each partial fraction a system of its own.
`log_depth_posterior`: the inverse square root of the matrix in the token (`inverse_root`).
"""

from __future__ import annotations

import math

from icrl.constructions.accelerated_gradient import System, accelerated_gradient_step
from icrl.constructions.form import Form
from icrl.constructions.inverse_root import inverse_root, root_moments, root_schedule
from icrl.constructions.layer import Layer
from icrl.constructions.newton_schulz import SLACK, Matrix
from icrl.constructions.pade import Pade
from icrl.constructions.primitives import (
    add_mean,
    add_product,
    add_scaled_product,
    add_share,
    multiply_by_index,
    update,
)
from icrl.constructions.problem import RidgeProblem
from icrl.constructions.stream import Stream


def paper_scratch(problem: RidgeProblem, terms: int) -> dict[str, int]:
    """Blocks of `paper_posterior`."""
    d, A = problem.dim, problem.n_actions
    scratch = {"shifted_share": A * d, "shifted": A * d, "root_actions": A * d, "means": A}
    for name, width in (("ridge_estimate", d), ("fractions", A * terms * d), ("spreads", A * d)):
        scratch |= {name: width, f"{name}_previous": width, f"{name}_momentum": width}
    return scratch


def paper_posterior(
    stream: Stream, problem: RidgeProblem, noise_variance: float, terms: int, steps: int
) -> list[Layer]:
    """Thm 10, steps 1 to 3: 4 + 2 `steps` layers, the estimate solved beside the fractions.

    Every system has a step size and a momentum of its own: with the printed 1 / (B_a^2 + ridge) the fractions of small
    b_j diverge at early tokens, where their Hessian is about (1 - b_j) mu / i (erratum E3).
    """
    d, A = problem.dim, problem.n_actions
    pade = Pade.of(problem, terms)

    def part(name: str, first: int) -> Form:
        return stream[name][first : first + d]

    def system(name: str, first: int, target: Form | None, own: RidgeProblem, weight: float = 1.0) -> System:
        x, before, v = (part(name + role, first) for role in ("", "_previous", "_momentum"))
        return System(x, before, v, target, problem=own, weight=weight)

    share = Layer(stream)
    for k in range(A):
        action = part("action_set", k * d)
        add_mean(share, action, stream["action"], stream["action"], part("shifted_share", k * d))
    add_share(share, (problem.ridge - pade.shift) * stream["action_set"], stream["shifted_share"])
    whole = Layer(stream)
    multiply_by_index(whole, stream["shifted_share"], stream["shifted"], problem.last)

    systems = [system("ridge_estimate", 0, None, problem)]
    for k in range(A):
        for j, (a, b) in enumerate(zip(pade.a, pade.b, strict=True)):
            target = a * part("shifted", k * d)
            systems.append(system("fractions", (k * terms + j) * d, target, pade.system(problem, j), b))
    solve = accelerated_gradient_step(stream, problem, systems)

    combine = Layer(stream)
    for k in range(A):
        total = part("action_set", k * d)
        for j in range(terms):
            total = total + part("fractions", (k * terms + j) * d)
        update(combine, math.sqrt(pade.shift * noise_variance) * total, part("root_actions", k * d))

    last = [system("spreads", k * d, part("root_actions", k * d), problem) for k in range(A)]
    spreads = accelerated_gradient_step(stream, problem, last)
    index = Layer(stream)
    for k in range(A):
        bound = SLACK * problem.action_bound * problem.estimate_bound
        add_product(index, stream["ridge_estimate"], part("action_set", k * d), stream["means"][k], bound=bound)
    return [share, whole, *[solve] * steps, combine, *[spreads] * steps, index]


def log_depth_scratch(problem: RidgeProblem) -> dict[str, int]:
    """Blocks of `log_depth_posterior`."""
    d, A = problem.dim, problem.n_actions
    return {"moment": d, "image": d * d, "copy": d * d, "root": d * d, "half_estimate": d, "means": A, "spreads": A * d}


def log_depth_posterior(stream: Stream, problem: RidgeProblem, noise_variance: float, steps: int) -> list[Layer]:
    """3 + 2 `steps` layers: X = Sigma^{-1/2}, then X a_k and X sum a_j r_j, then their inner products <mu, a_k>."""
    d, A = problem.dim, problem.n_actions
    schedule = root_schedule(problem.condition, steps)
    root = Matrix(stream, "root", d)
    scale = math.sqrt(noise_variance)
    norm = SLACK / math.sqrt(problem.ridge)
    apply, index = Layer(stream), Layer(stream)
    for p in range(d):
        row = schedule.centre * root.row(p)
        for k in range(A):
            action = stream["action_set"][k * d : (k + 1) * d]
            add_product(
                apply, scale * row, action, stream["spreads"][k * d + p], bound=scale * norm * problem.action_bound
            )
        bound = norm * problem.action_bound * problem.reward_bound / 2
        add_scaled_product(apply, row, stream["moment"], stream.square, stream["half_estimate"][p], bound=bound)
    # |Sigma^{-1/2} M'| <= 1 for the matrix M of the actions played, so |X sum a_j r_j| <= R sqrt(T)
    bound = norm * problem.action_bound * problem.reward_bound * math.sqrt(problem.horizon)
    for k in range(A):
        spread = (1 / scale) * stream["spreads"][k * d : (k + 1) * d]
        add_product(index, stream["half_estimate"], spread, stream["means"][k], bound=bound)
    return [root_moments(stream, problem), *inverse_root(stream, problem, schedule.steps), apply, index]
