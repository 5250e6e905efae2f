"""Depth O(log T): the inverse square root of a matrix held in the token, two layers a step.

Y = A X^2 with X a polynomial in A, so that Y -> I makes X -> A^{-1/2}: X <- X (a - b Y), Y <- Y (a - b Y)^2.
Newton-Schulz is a = 3/2, b = 1/2. On a spectrum within [m, 1] the best cubic y (a - b y)^2 with a >= b (so that no
eigenvalue of X changes its sign) reaches 1 inside and the same least value at both ends: small eigenvalues grow by up
to 27/4 a step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from icrl.constructions.form import Form
from icrl.constructions.layer import Layer
from icrl.constructions.newton_schulz import SLACK, Matrix
from icrl.constructions.primitives import add_mean, add_product, add_share, piecewise_linear, update
from icrl.constructions.problem import RidgeProblem
from icrl.constructions.stream import Stream

LAYERS_A_STEP = 2


@dataclass(frozen=True)
class RootStep:
    """y <- y (a - b y)^2 for eigenvalues y in [m, 1]."""

    a: float
    b: float

    def __call__(self, y: float) -> float:
        return y * (self.a - self.b * y) ** 2


@dataclass(frozen=True)
class RootSchedule:
    """The steps, the factor that centres the last spectrum of A^{1/2} X on 1, and |A^{1/2} X - I| after it."""

    steps: tuple[RootStep, ...]
    centre: float
    error: float


def root_schedule(condition: float, n_steps: int, *, plain: bool = False) -> RootSchedule:
    """`n_steps` steps for a spectrum within [1 / condition, 1]; plain: Newton-Schulz's a = 3/2, b = 1/2 throughout."""
    m = 1 / condition
    steps = []
    for _ in range(n_steps):
        step = RootStep(1.5, 0.5) if plain else _best(m)
        steps.append(step)
        m = min(1.0, step(m))
    low = math.sqrt(m)
    return RootSchedule(tuple(steps), 2 / (1 + low), (1 - low) / (1 + low))


def root_steps_for(condition: float, error: float) -> int:
    """The fewest steps that leave |A^{1/2} X - I| <= error."""
    n_steps = 0
    while root_schedule(condition, n_steps).error > error:
        n_steps += 1
    return n_steps


def _best(m: float) -> RootStep:
    """4 a^3 = 27 b puts the maximum 1 at y = a / 3b; a larger a lowers the end y = 1 and lifts the end y = m."""
    low, high = 1.5, math.sqrt(27 / 4)
    for _ in range(200):
        a = (low + high) / 2
        step = RootStep(a, 4 * a**3 / 27)
        if step(1.0) > step(m):
            low = a
        else:
            high = a
    return RootStep(low, 4 * low**3 / 27)


def root_moments(stream: Stream, problem: RidgeProblem) -> Layer:
    """One layer: image = A / (i beta) twice, moment = (1/i) sum a_j r_j, root = I / sqrt(i beta).

    2T neurons hold i -> 1 / sqrt(i beta), exact at every token.
    """
    layer = Layer(stream)
    image, copy, root = (Matrix(stream, name, problem.dim) for name in ("image", "copy", "root"))
    action, reward = stream["action"], stream["reward"]
    unit = 1 / problem.smoothness
    for p in range(problem.dim):
        into = Form.cat(unit * (image.row(p) + copy.row(p)), stream["moment"][p])
        add_mean(layer, stream.one, action[p], Form.cat(action, reward), into)
    add_share(layer, stream.constants(unit * problem.ridge), image.diagonal() + copy.diagonal())
    indices = range(1, problem.last + 1)
    piecewise_linear(layer, stream.index, indices, [math.sqrt(unit / i) for i in indices], root.diagonal())
    return layer


def inverse_root(stream: Stream, problem: RidgeProblem, steps: Sequence[RootStep]) -> list[Layer]:
    """Two layers a step: T = Y (a - b Y) and X (a - b Y), then Y = T (a - b Y) from a copy of the old Y.

    Attention adds -(b/a) times a product, the MLP multiplies by a. Entries of all products are bounded by 1 and
    1 / sqrt(ridge) at any two tokens, for Y <= I and X = A^{-1/2} Y^{1/2}; T <= 1 as well.
    """
    image, copy, root = (Matrix(stream, name, problem.dim) for name in ("image", "copy", "root"))
    bound = SLACK * max(1.0, 1 / math.sqrt(problem.ridge)) * 9 / 8  # T <= a^2 / 4b = 27 / 16a, a >= 3/2
    layers = []
    for step in steps:
        first, second = Layer(stream), Layer(stream)
        for q in range(problem.dim):
            for p in range(q + 1):
                for matrix in (image, root):
                    entry = matrix.entry(p, q)
                    add_product(first, matrix.row(p), image.row(q), (-step.b / step.a) * entry, bound=bound)
                    update(first, (step.a - 1) * matrix.row(p)[q], entry)
                new = image.row(p)[q]
                add_product(second, image.row(p), copy.row(q), (-step.b / step.a) * image.entry(p, q), bound=bound)
                update(second, (step.a - 1) * new, image.entry(p, q))
                update(second, step.a * new - copy.row(p)[q], copy.entry(p, q))
        layers += [first, second]
    return layers
