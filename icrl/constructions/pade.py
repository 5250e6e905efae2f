"""The square root of Sigma_t by a Pade approximant in partial fractions, each a linear system (Thm 10, step 2)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count

from icrl.constructions.accelerated_gradient import residuals
from icrl.constructions.problem import RidgeProblem


@dataclass(frozen=True)
class Pade:
    """Sigma^{1/2} = sqrt(mu) (I + sum_j a_j X (I + b_j X)^{-1}) + E, X = (Sigma - mu I) / mu (section 2.3, 2a-2c)."""

    shift: float
    """mu = sqrt(T ridge (B_a^2 + ridge))."""
    a: tuple[float, ...]
    b: tuple[float, ...]
    error: float
    """|E| for every Sigma with a spectrum within [ridge, T (B_a^2 + ridge)]."""

    @classmethod
    def of(cls, problem: RidgeProblem, terms: int) -> Pade:
        """The approximant of `terms` partial fractions for every Sigma_t of the problem."""
        m, T, ridge = terms, problem.horizon, problem.ridge
        smooth = problem.action_bound**2 + ridge
        angles = [j * math.pi / (2 * m + 1) for j in range(1, m + 1)]
        quarter = (T * smooth / ridge) ** 0.25
        growth = ((quarter + 1) / (quarter - 1)) ** (2 * m + 1)
        return cls(
            math.sqrt(T * ridge * smooth),
            tuple(2 / (2 * m + 1) * math.sin(angle) ** 2 for angle in angles),
            tuple(math.cos(angle) ** 2 for angle in angles),
            max(2 * math.sqrt(T * smooth) / (1 + growth), 2 * math.sqrt(ridge) / (growth - 1)),
        )

    def system(self, problem: RidgeProblem, j: int) -> RidgeProblem:
        """The ridge problem of fraction j: M_j = [(1 - b_j) mu + b_j ridge] I + b_j sum a_s a_s'."""
        b = self.b[j]
        ridge = (1 - b) * self.shift + b * problem.ridge
        return replace(problem, ridge=ridge, action_bound=math.sqrt(b) * problem.action_bound)

    def size(self, problem: RidgeProblem, j: int) -> float:
        """|a_j X (I + b_j X)^{-1}|: x / (1 + b x) increases, so an end of the spectrum has the largest."""
        ends = (problem.ridge, problem.ridge + problem.horizon * problem.action_bound**2)
        return max(abs(self.a[j] * x / (1 + self.b[j] * x)) for x in (end / self.shift - 1 for end in ends))


def spread_errors(problem: RidgeProblem, variance: float, pade: Pade) -> Iterator[float]:
    """For 1, 2, ... steps of each of the two solves: the most that sqrt(variance) Sigma^{-1/2} a may be off.

    Sigma^{-1} carries the error of the root, that of the approximant and of every fraction, over by 1 / ridge.
    """
    scale = math.sqrt(variance) * problem.action_bound
    sizes = [pade.size(problem, j) for j in range(len(pade.b))]
    fractions = [residuals(pade.system(problem, j)) for j in range(len(pade.b))]
    for last in residuals(problem):
        solved = sum(size * next(errors) for size, errors in zip(sizes, fractions, strict=True))
        root = pade.error + math.sqrt(pade.shift) * solved
        yield scale * (root * (1 + last) / problem.ridge + last / math.sqrt(problem.ridge))


def approximant_error(problem: RidgeProblem, variance: float, terms: int) -> float:
    """The share of the approximant in `spread_errors`, which no number of steps takes away."""
    scale = math.sqrt(variance) * problem.action_bound
    return scale * Pade.of(problem, terms).error / problem.ridge


def terms_for(problem: RidgeProblem, variance: float, error: float) -> int:
    """The fewest partial fractions with an approximant's share of at most `error`."""
    return next(terms for terms in count(1) if approximant_error(problem, variance, terms) <= error)


def steps_for(problem: RidgeProblem, variance: float, terms: int, error: float) -> int:
    """The fewest steps of each solve that leave at most `error`; ValueError when the approximant leaves as much."""
    share = approximant_error(problem, variance, terms)
    if share >= error:
        raise ValueError(
            f"terms = {terms}: they leave {share:.2g} however many steps are taken, expected at least "
            f"{terms_for(problem, variance, error / 2)} for tolerance = {error:g}"
        )
    errors = spread_errors(problem, variance, Pade.of(problem, terms))
    return next(steps for steps, found in enumerate(errors, start=1) if found <= error)


def theorem_terms(problem: RidgeProblem, error: float) -> float:
    """m of Thm 10 for |E| <= error: (kappa^{1/4} / 4 + 1) times the larger of two logarithms, kappa = T (B_a^2 +
    ridge) / ridge; not rounded."""
    T, ridge = problem.horizon, problem.ridge
    smooth = problem.action_bound**2 + ridge
    logs = (math.log(2 * math.sqrt(T * smooth) / error), math.log(2 * math.sqrt(ridge) / error + 1))
    return (math.sqrt(math.sqrt(T * smooth / ridge)) / 4 + 1) * max(map(math.ceil, logs))


def theorem_layers(problem: RidgeProblem, error: float) -> int:
    """L of Thm 10, steps 1 to 3, for sqrt(r) Sigma^{-1/2} a to `error`: both gradient descents and 4 layers."""
    T, ridge, smooth = problem.horizon, problem.ridge, problem.action_bound**2 + problem.ridge
    rate = 2 * math.sqrt(2 * T * smooth / ridge)
    each = error / theorem_terms(problem, error)
    fractions = (1 + T * smooth / ridge) * problem.action_bound * T * smooth / (ridge * each)
    last = (2 * T * smooth + ridge) * problem.action_bound / (ridge**2 * error)
    return math.ceil(rate * math.log(fractions)) + math.ceil(rate * math.log(last)) + 4
