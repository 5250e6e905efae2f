"""Every trajectory of a tiny Bernoulli bandit with its exact probability: an oracle for expectations over them.

Independent of `icrl`: fractions and the Beta function of whole numbers.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from fractions import Fraction
from math import comb, factorial

import numpy as np
import numpy.typing as npt

Rounds = tuple[tuple[int, int], ...]
"""(action, reward) of each round."""


@dataclass(frozen=True)
class Trajectories:
    """All (2 A)^T trajectories."""

    action: npt.NDArray[np.int64]
    """int64[n, T]."""
    reward: npt.NDArray[np.float32]
    """float32[n, T]."""
    evidence: npt.NDArray[np.float64]
    """float64[n]: P(rewards | actions) under p ~ Unif[0, 1]^A; times prod_t Alg(a_t | ...) it is P(D)."""

    @property
    def rounds(self) -> list[Rounds]:
        """The same as tuples."""
        pairs = np.stack([self.action, self.reward.astype(np.int64)], axis=-1)
        return [tuple(map(tuple, one)) for one in pairs.tolist()]


def every_trajectory(n_actions: int, horizon: int) -> Trajectories:
    """In the order of their rounds."""
    pairs = list(itertools.product(range(n_actions), (0, 1)))
    found = np.array(list(itertools.product(pairs, repeat=horizon)))
    evidence = [float(evidence_of(tuple(map(tuple, one)), n_actions)) for one in found.tolist()]
    return Trajectories(found[:, :, 0], found[:, :, 1].astype(np.float32), np.array(evidence))


def counts(rounds: Rounds, n_actions: int) -> list[tuple[int, int]]:
    """(successes, failures) of each action."""
    return [(sum(r for a, r in rounds if a == k), sum(1 - r for a, r in rounds if a == k)) for k in range(n_actions)]


def evidence_of(rounds: Rounds, n_actions: int) -> Fraction:
    """prod_a B(1 + s_a, 1 + f_a) = prod_a s_a! f_a! / (s_a + f_a + 1)!."""
    total = Fraction(1)
    for s, f in counts(rounds, n_actions):
        total *= Fraction(factorial(s) * factorial(f), factorial(s + f + 1))
    return total


def first_is_best(rounds: Rounds) -> Fraction:
    """P(p_0 > p_1 | rounds) of two actions: integral of f_0(x) F_1(x), F_1(x) = P(Binomial(n_1 + 1, x) >= s_1 + 1)."""
    (s0, f0), (s1, f1) = counts(rounds, 2)
    total, n = Fraction(0), s1 + f1 + 1
    for i in range(s1 + 1, n + 1):
        total += comb(n, i) * Fraction(factorial(s0 + i) * factorial(f0 + n - i), factorial(s0 + f0 + n + 1))
    return total * Fraction(factorial(s0 + f0 + 1), factorial(s0) * factorial(f0))
