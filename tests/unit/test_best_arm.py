"""The probability to be the best: against exact rational integrals, closed forms, adaptive quadrature and samples."""

from fractions import Fraction
from math import comb, factorial

import numpy as np
import pytest
from scipy import integrate
from scipy.special import ndtr
from scipy.stats import beta, norm

from icrl import best_arm
from icrl.best_arm import BetaBest, gaussian_best


def density(s, f):
    """Coefficients of the Beta(1 + s, 1 + f) density, x^s (1 - x)^f (s + f + 1)! / (s! f!), exactly."""
    scale = Fraction(factorial(s + f + 1), factorial(s) * factorial(f))
    return [Fraction(0)] * s + [scale * comb(f, i) * (-1) ** i for i in range(f + 1)]


def product(p, q):
    out = [Fraction(0)] * (len(p) + len(q) - 1)
    for i, a in enumerate(p):
        for j, b in enumerate(q):
            out[i + j] += a * b
    return out


def exactly(successes, failures):
    """P(k is best) for every k as fractions, by integration of polynomials."""
    found = []
    for k in range(len(successes)):
        p = density(successes[k], failures[k])
        for j in range(len(successes)):
            if j != k:
                p = product(p, [Fraction(0), *(c / (i + 1) for i, c in enumerate(density(successes[j], failures[j])))])
        found.append(sum(c / (i + 1) for i, c in enumerate(p)))
    assert sum(found) == 1
    return found


def random_counts(rng, rows, n_actions, rounds):
    """Counts of at most `rounds` plays in a row, some of them lopsided."""
    n = rng.multinomial(rng.integers(0, rounds + 1, rows), rng.dirichlet(np.full(n_actions, 0.5), rows))
    s = rng.binomial(n, rng.beta(0.4, 0.4, n.shape))
    return s, n - s


@pytest.mark.parametrize(("n_actions", "rounds"), [(2, 3), (2, 60), (3, 41), (5, 30)])
def test_beta_best_against_exact_integrals(n_actions, rounds):
    s, f = random_counts(np.random.default_rng(n_actions), 12, n_actions, rounds)
    got = BetaBest(n_actions, rounds).probabilities(s, f)
    want = np.array([[float(p) for p in exactly(a.tolist(), b.tolist())] for a, b in zip(s, f, strict=True)])
    np.testing.assert_allclose(got, want, rtol=1e-11)
    assert got.dtype == np.float64


def test_a_hopeless_action_keeps_its_relative_precision():
    """P(action 0 is best) after 60 failures against 60 successes."""
    for rounds in (120, 300):  # tabulated, and not
        got = BetaBest(2, rounds).probabilities([[0, 60]], [[60, 0]])[0, 0]
        want = exactly([0, 60], [60, 0])[0]
        assert float(want) < 1e-30
        assert got == pytest.approx(float(want), rel=1e-10)


@pytest.mark.parametrize("rounds", [200, best_arm.TABLE_ROUNDS + 1])
def test_beta_best_does_not_depend_on_its_company_or_on_the_order_of_the_actions(rounds):
    s, f = random_counts(np.random.default_rng(1), 400, 4, 200)
    best = BetaBest(4, rounds)
    whole = best.probabilities(s, f)
    np.testing.assert_array_equal(whole[7:9], best.probabilities(s[7:9], f[7:9]))
    order = [2, 0, 3, 1]
    np.testing.assert_allclose(best.probabilities(s[:, order], f[:, order]), whole[:, order], rtol=1e-12)
    np.testing.assert_allclose(whole, BetaBest(4, 250).probabilities(s, f), rtol=1e-9, atol=1e-300)
    np.testing.assert_allclose(best.probabilities([[3] * 4], [[5] * 4]), 0.25, rtol=1e-13)


def test_beta_best_against_a_million_samples():
    rng = np.random.default_rng(2)
    s, f = np.array([12, 9, 3, 0, 20]), np.array([5, 2, 3, 0, 11])
    samples = rng.beta(1 + s, 1 + f, (10**6, 5)).argmax(axis=1)
    p = BetaBest(5, 200).probabilities([s], [f])[0]
    frequency = np.bincount(samples, minlength=5) / 10**6
    assert np.all(np.abs(frequency - p) < 4.5 * np.sqrt(p * (1 - p) / 10**6))


def by_panels(successes, failures):
    """The same integral by 40 nodes in each half standard deviation of each posterior."""
    a, b = 1 + successes, 1 + failures
    mean, deviation = a / (a + b), np.sqrt(a * b / (a + b) ** 2 / (a + b + 1))
    edges = np.unique(np.clip([mean + deviation * k / 2 for k in range(-40, 41)], 0, 1))
    node, weight = np.polynomial.legendre.leggauss(40)
    width = np.diff(edges)[:, None]
    x, w = (edges[:-1, None] + width * (node + 1) / 2).ravel(), (width * weight / 2).ravel()
    f = [beta.pdf(x, *pair) for pair in zip(a, b, strict=True)]
    F = [beta.cdf(x, *pair) for pair in zip(a, b, strict=True)]
    return np.array([np.sum(w * f[k] * np.prod(F[:k] + F[k + 1 :], axis=0)) for k in range(len(a))])


@pytest.mark.parametrize(("n_actions", "plays", "error"), [(5, 200, 1e-12), (20, 1000, 1e-12), (3, 100_000, 1e-8)])
def test_beta_best_over_long_horizons(n_actions, plays, error):
    rng = np.random.default_rng(1)
    best = BetaBest(n_actions, plays)
    means = (rng.uniform(size=n_actions), 0.5 + rng.uniform(-1, 1, n_actions) / np.sqrt(plays))
    for mean in (*means, 1 - 3 * rng.uniform(size=n_actions) / plays):
        count = rng.multinomial(plays, rng.dirichlet(np.ones(n_actions)))
        s = rng.binomial(count, mean)
        np.testing.assert_allclose(best.probabilities([s], [count - s])[0], by_panels(s, count - s), rtol=0, atol=error)


def test_beta_best_refuses_what_it_was_not_made_for():
    best = BetaBest(2, 10)
    for s, f in (([[6, 0]], [[5, 0]]), ([[-1, 0]], [[0, 0]]), ([[1, 1, 1]], [[0, 0, 0]]), ([1, 1], [1, 1])):
        with pytest.raises(ValueError, match="counts"):
            best.probabilities(s, f)


def test_gaussian_best_of_two_in_closed_form():
    rng = np.random.default_rng(3)
    mean, std = rng.normal(size=(200, 2)) * 3, np.exp(rng.normal(size=(200, 2)) * 2)
    exact = norm.cdf((mean[:, 0] - mean[:, 1]) / np.hypot(std[:, 0], std[:, 1]))
    np.testing.assert_allclose(gaussian_best(mean, std)[:, 0], exact, atol=1e-10)


def test_gaussian_best_against_adaptive_quadrature():
    rng = np.random.default_rng(4)
    for scale in (0.1, 1.5):  # standard deviations of like and of unlike size
        mean, std = rng.normal(size=(6, 5)), np.exp(rng.normal(size=(6, 5)) * scale)
        got = gaussian_best(mean, std)
        for m, s, p in zip(mean, std, got, strict=True):
            for k in range(5):

                def integrand(x, m=m, s=s, k=k):
                    z = (x - m) / s
                    return np.exp(-(z[k] ** 2) / 2) / (s[k] * np.sqrt(2 * np.pi)) * np.prod(np.delete(ndtr(z), k))

                points = np.sort(np.concatenate([m, m - 3 * s, m + 3 * s]))
                low, high = (m - 12 * s).min(), (m + 12 * s).max()
                want = integrate.quad(integrand, low, high, points=points, limit=400, epsabs=1e-12)[0]
                assert p[k] == pytest.approx(want, abs=2e-10)


def test_gaussian_best_against_a_million_samples():
    rng = np.random.default_rng(5)
    mean, std = np.array([0.3, 0.0, 0.5, -0.2]), np.array([0.2, 0.9, 0.1, 0.5])
    samples = rng.normal(mean, std, (10**6, 4)).argmax(axis=1)
    p = gaussian_best(mean[None], std[None])[0]
    assert np.all(np.abs(np.bincount(samples, minlength=4) / 10**6 - p) < 4.5 * np.sqrt(p * (1 - p) / 10**6))
