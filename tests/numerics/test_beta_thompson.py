"""Thompson sampling's probabilities along plays of Bernoulli bandits, by two roads other than its own quadrature."""

from fractions import Fraction
from math import comb

import numpy as np
import pytest
from scipy import special, stats

from icrl import algorithms, envs
from icrl.config import BernoulliBanditConfig, ContextComponent, ThompsonConfig
from icrl.rollout import generate
from icrl.streams import Split


def by_panels(a, b):
    """P(k is best) from 40 nodes in each half standard deviation of each posterior."""
    mean, deviation = a / (a + b), np.sqrt(a * b / (a + b) ** 2 / (a + b + 1))
    edges = np.unique(np.clip([mean + deviation * k / 2 for k in range(-40, 41)], 0, 1))
    node, weight = np.polynomial.legendre.leggauss(40)
    width = np.diff(edges)[:, None]
    x, w = (edges[:-1, None] + width * (node + 1) / 2).ravel(), (width * weight / 2).ravel()
    f = [stats.beta.pdf(x, *pair) for pair in zip(a, b, strict=True)]
    F = [special.betainc(*pair, x) for pair in zip(a, b, strict=True)]
    return np.array([np.sum(w * f[k] * np.prod(F[:k] + F[k + 1 :], axis=0)) for k in range(len(a))])


def along(environment, rounds, count=6):
    """The algorithm after its own play of so many rounds, and its Beta parameters."""
    context = (ContextComponent(ThompsonConfig()),)
    played = generate(environment, context, 0, Split.TEST, np.arange(count))
    algorithm = algorithms.build(ThompsonConfig(), environment)
    algorithm.reset(envs.sample(environment, 0, Split.TEST, np.arange(count)))
    for t in range(rounds):
        algorithm.update(played.action[:, t].astype(np.int64), played.reward[:, t])
    return algorithm, *algorithm.parameters()


@pytest.mark.parametrize(
    ("n_actions", "horizon", "rounds"), [(5, 200, 0), (5, 200, 9), (5, 200, 199), (23, 250, 250), (3, 1000, 999)]
)
def test_against_panels_around_each_posterior(n_actions, horizon, rounds):
    algorithm, a, b = along(BernoulliBanditConfig(n_actions=n_actions, horizon=horizon), rounds)
    assert np.all(a + b - 2 >= 0)
    assert np.all((a + b - 2).sum(axis=1) == rounds)
    want = [by_panels(*parameters) for parameters in zip(a, b, strict=True)]
    np.testing.assert_allclose(algorithm.probabilities(), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rounds", [0, 1, 7, 60, 200])
def test_two_actions_against_an_order_of_uniforms(rounds):
    """P(Beta(a, b) > Beta(c, d)) as a sum of hypergeometric probabilities.

    The a-th smallest of a + b - 1 uniforms lies above the c-th smallest of c + d - 1 others where at least c of the
    latter are below it.
    """
    algorithm, a, b = along(BernoulliBanditConfig(n_actions=2, horizon=200), rounds)
    for row, (first, second) in enumerate(zip(a.astype(int).tolist(), b.astype(int).tolist(), strict=True)):
        above, total, other = first[0], first[0] + second[0] - 1, first[1] + second[1] - 1
        exact = sum(
            Fraction(comb(above - 1 + j, j) * comb(total - above + other - j, other - j), comb(total + other, other))
            for j in range(first[1], other + 1)
        )
        np.testing.assert_allclose(algorithm.probabilities()[row], [float(exact), float(1 - exact)], rtol=0, atol=1e-13)
