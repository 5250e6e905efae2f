"""Depth O(log T): the inverse of a matrix held in the token, one layer a step.

Y = A X with X a polynomial in A; X <- X (a - b Y), Y <- Y (a - b Y). Both products are of parts of the same token and
read the same Y, so one attention layer makes a step. Newton-Schulz is a = 2, b = 1; a = 4 / (1 + m), b = 4 / (1 + m)^2
maps a spectrum within [m, 1] into [4m / (1 + m)^2, 1], the best that a quadratic does: n such steps are the Chebyshev
iteration of degree 2^n (docs/theory/log-depth-ridge.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from icrl.constructions.form import Form
from icrl.constructions.layer import Layer
from icrl.constructions.primitives import add_mean, add_product, add_share, update
from icrl.constructions.problem import RidgeProblem
from icrl.constructions.stream import Stream

SLACK = 1.01
"""How far beyond its bound a rounded entry may lie."""


@dataclass(frozen=True)
class Step:
    """y <- y (a - b y) for eigenvalues y in [m, 1]."""

    a: float
    b: float


@dataclass(frozen=True)
class Schedule:
    """The steps, the factor that centres the last spectrum on 1, and |A X - I| after it."""

    steps: tuple[Step, ...]
    centre: float
    error: float


def schedule(condition: float, n_steps: int, *, plain: bool = False) -> Schedule:
    """`n_steps` steps for a spectrum within [1 / condition, 1]; plain: Newton-Schulz's a = 2, b = 1 throughout."""
    m = 1 / condition
    steps = []
    for _ in range(n_steps):
        step = Step(2.0, 1.0) if plain else Step(4 / (1 + m), 4 / (1 + m) ** 2)
        steps.append(step)
        m = min(1.0, m * (step.a - step.b * m))
    return Schedule(tuple(steps), 2 / (1 + m), (1 - m) / (1 + m))


def steps_for(condition: float, error: float, *, plain: bool = False) -> int:
    """The fewest steps that leave |A X - I| <= error."""
    n_steps = 0
    while schedule(condition, n_steps, plain=plain).error > error:
        n_steps += 1
    return n_steps


class Matrix:
    """A symmetric d x d matrix held row by row in one block of the token."""

    def __init__(self, stream: Stream, name: str, dim: int) -> None:
        self._entries, self._dim = stream[name], dim

    def row(self, p: int) -> Form:
        """Row p, [d]."""
        return self._entries[p * self._dim : (p + 1) * self._dim]

    def entry(self, p: int, q: int) -> Form:
        """Where entry (p, q) is written: its mirror image is the same number."""
        both = self.row(p)[q]
        return both if p == q else both + self.row(q)[p]

    def diagonal(self) -> Form:
        """Where a multiple of the identity is written."""
        total = self.row(0)[0]
        for p in range(1, self._dim):
            total = total + self.row(p)[p]
        return total


def moments(stream: Stream, problem: RidgeProblem) -> Layer:
    """One layer of 2d + 1 heads: image = A / (i beta), moment = (1/i) sum a_j r_j, inverse = I / (i beta).

    The 1/i of the attention is the normaliser: with beta it keeps the spectrum of the image within [1 / kappa, 1] at
    every token.
    """
    layer = Layer(stream)
    image, inverse = (Matrix(stream, name, problem.dim) for name in ("image", "inverse"))
    action, reward = stream["action"], stream["reward"]
    unit = 1 / problem.smoothness
    for p in range(problem.dim):
        into = Form.cat(unit * image.row(p), stream["moment"][p])
        add_mean(layer, stream.one, action[p], Form.cat(action, reward), into)
    add_share(layer, stream.constants(unit * problem.ridge, unit), Form.cat(image.diagonal(), inverse.diagonal()))
    return layer


def inversion(stream: Stream, problem: RidgeProblem, steps: Sequence[Step]) -> list[Layer]:
    """One layer of 2d(d + 1) heads and 2d(d + 1) neurons a step: Y = image, X = inverse.

    Attention adds -(b/a) Y^2 and -(b/a) X Y, the MLP multiplies by a. At any two tokens entries of Y^2 and X Y are
    bounded by 1 and 1 / ridge, for Y <= I and X = A^{-1} Y.
    """
    image, inverse = (Matrix(stream, name, problem.dim) for name in ("image", "inverse"))
    bound = SLACK * max(1.0, 1 / problem.ridge)
    layers = []
    for step in steps:
        layer = Layer(stream)
        for q in range(problem.dim):
            for p in range(q + 1):
                for matrix in (image, inverse):
                    entry = matrix.entry(p, q)
                    add_product(layer, matrix.row(p), image.row(q), (-step.b / step.a) * entry, bound=bound)
                    update(layer, (step.a - 1) * matrix.row(p)[q], entry)
        layers.append(layer)
    return layers
