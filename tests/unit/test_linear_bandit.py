"""The prior over linear bandits and the reward."""

import numpy as np
import pytest
from scipy import stats

from icrl import envs
from icrl.config import LinearBanditConfig
from icrl.streams import Split

ENVIRONMENT = LinearBanditConfig(dim=3, n_actions=4, horizon=6)


def test_prior():
    batch = envs.sample(ENVIRONMENT, 0, Split.TRAIN, np.arange(5000))
    assert batch.theta.shape == (5000, 3)
    assert batch.action_set.shape == (5000, 4, 3)
    assert batch.theta.dtype == batch.action_set.dtype == batch.means.dtype == np.float32
    assert batch.optimal_action.dtype == np.uint8
    assert stats.kstest(batch.theta.ravel(), "uniform").pvalue > 0.01
    assert stats.kstest(batch.action_set.ravel(), "uniform", (-1, 2)).pvalue > 0.01
    together = np.concatenate([batch.theta, batch.action_set.reshape(5000, -1)], axis=1)
    correlation = np.corrcoef(together.T) - np.eye(15)
    assert np.abs(correlation).max() < 4.5 / np.sqrt(5000)


def test_means_and_optimal_action():
    batch = envs.sample(ENVIRONMENT, 1, Split.EVAL, np.arange(200))
    exact = np.einsum("bad,bd->ba", batch.action_set.astype(np.float64), batch.theta.astype(np.float64))
    np.testing.assert_allclose(batch.means, exact, atol=5e-7)
    np.testing.assert_array_equal(batch.optimal_action, exact.argmax(axis=1))


def test_one_dimension_keeps_the_prior_apart_from_the_means():
    batch = envs.sample(LinearBanditConfig(dim=1, n_actions=2), 0, Split.TRAIN, np.arange(50))
    assert np.abs(batch.action_set).max() <= 1
    np.testing.assert_array_equal(batch.means, batch.action_set[:, :, 0] * batch.theta)


@pytest.mark.parametrize("split", list(Split))
def test_an_environment_is_a_function_of_its_index(split):
    whole = envs.sample(ENVIRONMENT, 7, split, np.arange(40))
    part = envs.sample(ENVIRONMENT, 7, split, np.array([31, 4]))
    np.testing.assert_array_equal(part.index, [31, 4])
    for name in ("theta", "action_set", "means", "optimal_action"):
        np.testing.assert_array_equal(getattr(whole, name)[[31, 4]], getattr(part, name))


def test_reward_is_mean_plus_scaled_noise():
    batch = envs.sample(ENVIRONMENT, 0, Split.TRAIN, np.arange(3))
    noise = np.array([0.0, 1.0, -2.0], np.float32)
    got = envs.rewards(ENVIRONMENT, batch.means, np.array([0, 3, 1]), noise)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, batch.means[[0, 1, 2], [0, 3, 1]] + 1.5 * noise, atol=1e-6)
