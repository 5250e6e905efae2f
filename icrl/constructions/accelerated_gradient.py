"""The paper's ridge regression: accelerated gradient descent, one step a layer, all systems side by side."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from icrl.constructions.form import Form
from icrl.constructions.layer import Layer
from icrl.constructions.primitives import add, add_mean, add_share, update
from icrl.constructions.problem import RidgeProblem
from icrl.constructions.stream import Stream


@dataclass(frozen=True)
class System:
    """The unknown x [d] of A x = sum_j a_j r_j (`target` None) or A x = target: iterate, the one before, momentum."""

    iterate: Form
    previous: Form
    momentum: Form
    target: Form | None = None
    problem: RidgeProblem | None = field(default=None, kw_only=True)
    """None: the problem of all systems."""
    weight: float = field(default=1.0, kw_only=True)
    """A = ridge I + weight sum_j a_j a_j'; `problem.action_bound` bounds sqrt(weight) |a|."""


def accelerated_gradient_step(stream: Stream, problem: RidgeProblem, systems: list[System]) -> Layer:
    """One layer: x <- v - eta grad L(v); v <- x + beta (x - x_previous); x_previous <- x.

    2 heads and 4d neurons a system, and 2 gates that all systems share.
    L(x) = (1 / 2i) x' A x - (1 / i) <x, target> at token i, eta = 1 / (B_a^2 + ridge), beta of kappa = 2 T (B_a^2 +
    ridge) / ridge (section 2.2, with the gradient at v and sums to t - 1, erratum E2).
    """
    layer = Layer(stream)
    action, reward = stream["action"], stream["reward"]
    for system in systems:
        own = system.problem or problem
        eta, beta = _rates(own)
        x, v, before = system.iterate, system.momentum, system.previous
        if system.target is None:
            query, key, constant = Form.cat(v, stream.one), Form.cat(action, -reward), Form.zeros(problem.dim)
        else:
            query, key, constant = v, action, eta * system.target
        add_mean(layer, query, key, action, (-eta * system.weight) * x)
        add_share(layer, constant - eta * own.ridge * v, x)
        add(layer, v - x, x)
        update(layer, (1 + beta) * x - beta * before - v, v)
        update(layer, x - before, before)
    return layer


def residuals(problem: RidgeProblem) -> Iterator[float]:
    """For L = 1, 2, ...: max_h |e_L(h)| over the eigenvalues h of A / i.

    After L steps x - A^{-1} target = -e_L(A / i) A^{-1} target: e <- (1 - eta h) f, f <- (1 + beta) e - beta e_before,
    from e = f = 1. The maximum is taken on 1,024 points of [ridge / 2T, smoothness], evenly spaced in log h.
    """
    eta, beta = _rates(problem)
    h = np.geomspace(problem.ridge / problem.last, problem.smoothness, 1024)
    before = lead = np.ones_like(h)
    while True:
        error = (1 - eta * h) * lead
        lead, before = (1 + beta) * error - beta * before, error
        yield float(np.abs(error).max())


def residual(problem: RidgeProblem, steps: int) -> float:
    """The residual after `steps` steps."""
    return next(islice(residuals(problem), steps - 1, None))


def steps_for(problem: RidgeProblem, error: float) -> int:
    """The fewest steps with a residual of at most `error`."""
    return next(step for step, found in enumerate(residuals(problem), start=1) if found <= error)


def theorem_steps(problem: RidgeProblem, error: float) -> int:
    """L of Thm 8's lemma for the ridge estimate to `error`, R in place of B_a B_w + sigma.

    ceil(2 sqrt(2T) sqrt((B_a^2 + ridge) / ridge) log((2T (B_a^2 + ridge) + ridge) T B_a R / (ridge^2 error))).
    """
    smooth, ridge, T = problem.action_bound**2 + problem.ridge, problem.ridge, problem.horizon
    inner = (2 * T * smooth + ridge) * T * problem.action_bound * problem.reward_bound / (ridge**2 * error)
    return math.ceil(2 * math.sqrt(2 * T * smooth / ridge) * math.log(inner))


def _rates(problem: RidgeProblem) -> tuple[float, float]:
    """eta = 1 / (B_a^2 + ridge) and beta = (sqrt(kappa) - 1) / (sqrt(kappa) + 1)."""
    root = math.sqrt(problem.theorem_condition)
    return 1 / (problem.action_bound**2 + problem.ridge), (root - 1) / (root + 1)
