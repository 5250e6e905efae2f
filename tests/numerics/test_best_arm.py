"""The probability that an action is the best of Beta posteriors: exact fractions, finer quadrature, symmetry."""

from fractions import Fraction
from math import comb, factorial

import numpy as np
import pytest
from scipy import special, stats

from icrl.algorithms.best_arm import ERROR, BestBeta, nodes_for


def product(p, q):
    """Of two polynomials, as lists of coefficients."""
    out = [Fraction(0)] * (len(p) + len(q) - 1)
    for i, x in enumerate(p):
        for j, y in enumerate(q):
            out[i + j] += x * y
    return out


def integral(p):
    return [Fraction(0)] + [c / (i + 1) for i, c in enumerate(p)]


def exact(a, b):
    """By integrating the polynomials f_k prod F_j in fractions."""
    density = []
    for x, y in zip(a, b, strict=True):
        constant = Fraction(factorial(x + y - 1), factorial(x - 1) * factorial(y - 1))
        density.append([Fraction(0)] * (x - 1) + [constant * (-1) ** j * comb(y - 1, j) for j in range(y)])
    out = []
    for k in range(len(a)):
        p = density[k]
        for j in range(len(a)):
            p = p if j == k else product(p, integral(density[j]))
        out.append(sum(integral(p)))
    assert sum(out) == 1
    return np.array(out, np.float64)


def random_parameters(rng, A, N, kind):
    """a and b int64[A] after N plays: means anywhere, all close to 1/2, or all close to 1."""
    mean = {
        "anywhere": rng.uniform(size=A),
        "half": 0.5 + rng.uniform(-1, 1, A) / np.sqrt(N),
        "one": 1 - 3 * rng.uniform(size=A) / N,
    }[kind]
    count = rng.multinomial(N, rng.dirichlet(np.ones(A)))
    seen = rng.binomial(count, np.clip(mean, 0, 1))
    return 1 + seen, 1 + count - seen


@pytest.mark.parametrize(("n_actions", "plays"), [(2, 1), (2, 5), (3, 20), (4, 40), (5, 120)])
def test_against_fractions(n_actions, plays):
    rng = np.random.default_rng(0)
    for kind in ("anywhere", "half", "one"):
        a, b = random_parameters(rng, n_actions, plays, kind)
        got = BestBeta().probabilities(a[None].astype(float), b[None].astype(float))
        np.testing.assert_allclose(got[0], exact(a.tolist(), b.tolist()), rtol=0, atol=2e-14)


def by_panels(a, b):
    """The same integral by 40 nodes in each half standard deviation of each posterior."""
    mean, deviation = a / (a + b), np.sqrt(a * b / (a + b) ** 2 / (a + b + 1))
    edges = np.unique(np.clip([mean + deviation * k / 2 for k in range(-40, 41)], 0, 1))
    node, weight = np.polynomial.legendre.leggauss(40)
    width = np.diff(edges)[:, None]
    x, w = (edges[:-1, None] + width * (node + 1) / 2).ravel(), (width * weight / 2).ravel()
    f = [stats.beta.pdf(x, *pair) for pair in zip(a, b, strict=True)]
    F = [special.betainc(*pair, x) for pair in zip(a, b, strict=True)]
    return np.array([np.sum(w * f[k] * np.prod(F[:k] + F[k + 1 :], axis=0)) for k in range(len(a))])


@pytest.mark.parametrize(
    ("n_actions", "plays", "error"), [(5, 200, 1e-12), (20, 300, 1e-12), (5, 1000, 1e-12), (3, 100_000, ERROR)]
)
def test_against_panels_around_each_posterior(n_actions, plays, error):
    rng = np.random.default_rng(1)
    for kind in ("anywhere", "half", "one"):
        a, b = random_parameters(rng, n_actions, plays, kind)
        got = BestBeta().probabilities(a[None].astype(float), b[None].astype(float))
        np.testing.assert_allclose(got[0], by_panels(a, b), rtol=0, atol=error)


def test_two_actions_against_an_order_of_draws():
    """P(Beta(a, b) > Beta(c, d)) as a sum over hypergeometric probabilities, another road altogether."""
    for a, b, c, d in ((1, 1, 1, 1), (3, 2, 2, 5), (40, 11, 30, 8), (1, 90, 2, 100)):
        # the a-th smallest of a + b - 1 uniforms lies above the c-th smallest of c + d - 1 others
        # where at least c of the latter are among those below it
        n, m = a + b - 1, c + d - 1
        above = sum(Fraction(comb(a - 1 + j, j) * comb(n - a + m - j, m - j), comb(n + m, m)) for j in range(c, m + 1))
        got = BestBeta().probabilities(np.array([[a, c]], float), np.array([[b, d]], float))
        np.testing.assert_allclose(got[0], [float(above), float(1 - above)], rtol=0, atol=1e-12)


def test_rows_are_kept_apart_and_the_cache_changes_nothing():
    rng = np.random.default_rng(2)
    best = BestBeta()
    for plays in (3, 30, 30, 200, 10, 200):
        pairs = [random_parameters(rng, 5, plays, "anywhere") for _ in range(150)]
        a, b = (np.array([pair[i] for pair in pairs], float) for i in range(2))
        together = best.probabilities(a, b)
        np.testing.assert_allclose(together.sum(axis=1), 1, atol=1e-14)
        for row in (0, 63, 64, 149):
            alone = BestBeta().probabilities(a[row : row + 1], b[row : row + 1])
            np.testing.assert_allclose(together[row], alone[0], rtol=0, atol=1e-15)
        order = rng.permutation(5)
        np.testing.assert_allclose(best.probabilities(a[:, order], b[:, order]), together[:, order], rtol=0, atol=1e-13)
    assert best.probabilities(np.ones((0, 5)), np.ones((0, 5))).shape == (0, 5)


def test_few_nodes():
    """Enough for no error at all where that is few, and in the order of sqrt(rounds) where it is not."""
    for rounds in range(60):
        assert 2 * nodes_for(rounds, 5) >= rounds + 5
    assert nodes_for(200, 5) == 128
    assert nodes_for(100_000, 5) == 2048
