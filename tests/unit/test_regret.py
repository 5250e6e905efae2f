"""Statistics of regret against NumPy, by hand, and against the coverage that an interval promises."""

import numpy as np
import pytest
from scipy import stats

from eval.regret import Ratio, cumulative, estimate, paired_difference, ratio_of_means


def test_an_estimate_by_hand():
    found = estimate(np.array([[1.0, 10.0], [3.0, 10.0], [5.0, 10.0]]))
    np.testing.assert_allclose(found.mean, [3.0, 10.0])
    np.testing.assert_allclose(found.standard_error, [2.0 / np.sqrt(3), 0.0])


def test_an_estimate_of_float32_is_summed_in_float64():
    samples = np.random.default_rng(0).normal(1e4, 1, (5000, 3)).astype(np.float32)
    found = estimate(samples)
    np.testing.assert_allclose(found.mean, samples.astype(np.float64).mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.standard_error, stats.sem(samples.astype(np.float64), axis=0), rtol=1e-9)


def test_regret_is_the_running_sum():
    np.testing.assert_array_equal(cumulative(np.array([[1, 2, 0.5]], np.float32)), [[1.0, 3.0, 3.5]])


def test_pairing_takes_out_what_is_shared():
    random = np.random.default_rng(1)
    shared = random.normal(0, 100, 400)
    first, second = shared + random.normal(1, 0.1, 400), shared + random.normal(0, 0.1, 400)
    found = paired_difference(first, second)
    assert found.mean == pytest.approx(1, abs=0.03)
    assert found.standard_error == pytest.approx(0.1 * np.sqrt(2 / 400), rel=0.15)
    assert estimate(first).standard_error > 100 * found.standard_error


def test_a_ratio_of_proportional_samples_is_exact():
    base = np.array([1.0, 2.0, 4.0])
    found = ratio_of_means(3 * base, base)
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((3, 3, 3))


def test_a_ratio_by_hand():
    # r = 2, residuals x - 2 y = (1, -1): s = sqrt(2), half width 1.96 * sqrt(2) / sqrt(2) / mean(y)
    found = ratio_of_means(np.array([3.0, 5.0]), np.array([1.0, 3.0]))
    assert found == Ratio(pytest.approx(2), pytest.approx(2 - 1.959964 / 2), pytest.approx(2 + 1.959964 / 2))


def test_the_interval_of_a_ratio_covers_as_often_as_it_says():
    random = np.random.default_rng(2)
    covered = 0
    for _ in range(2000):
        base = random.gamma(4, 1, 100)
        found = ratio_of_means(0.6 * base + random.gamma(2, 0.4, 100), base)
        covered += found.low <= (0.6 * 4 + 0.8) / 4 <= found.high
    # four standard deviations of a binomial with p = 0.95, and a little for the finite sample
    assert 0.92 <= covered / 2000 <= 0.97


def test_no_ratio_to_nothing():
    assert ratio_of_means(np.array([1.0, 2.0]), np.zeros(2)) is None
