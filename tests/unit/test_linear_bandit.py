"""The prior over linear bandits and the reward."""

import numpy as np
import pytest
from scipy import stats

from icrl import envs, streams
from icrl.config import LinearBanditConfig
from icrl.envs.linear_bandit import on_the_sphere
from icrl.streams import Split, Stream

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


@pytest.mark.parametrize("prior", ["gaussian", "sphere"])
def test_priors_of_normals(prior):
    """Chi-square law of |w|^2 of the Gaussian; |w| = 1 and a uniform direction on the sphere; the same actions."""
    environment = LinearBanditConfig(dim=3, n_actions=4, prior=prior)
    batch = envs.sample(environment, 0, Split.TRAIN, np.arange(5000))
    np.testing.assert_array_equal(
        batch.action_set, envs.sample(ENVIRONMENT, 0, Split.TRAIN, np.arange(5000)).action_set
    )
    w = batch.theta.astype(np.float64)
    if prior == "gaussian":
        assert stats.kstest(w.ravel(), "norm").pvalue > 0.01
        assert stats.kstest((w**2).sum(axis=1), "chi2", (3,)).pvalue > 0.01
    else:
        np.testing.assert_allclose(np.linalg.norm(w, axis=1), 1, atol=2e-7)
        assert stats.kstest(w[:, 0], "uniform", (-1, 2)).pvalue > 0.01  # Archimedes: uniform in three dimensions
    assert np.abs(np.corrcoef(w.T) - np.eye(3)).max() < 4.5 / np.sqrt(5000)
    exact = np.einsum("bad,bd->ba", batch.action_set.astype(np.float64), w)
    np.testing.assert_allclose(batch.means, exact, atol=2e-6)


def test_the_centre_has_a_direction_too():
    normals = np.array([[0, 0, 0], [0, -2, 0], [3, 0, 4]], np.float32)
    want = np.array([[1, 0, 0], [0, -1, 0], [0.6, 0, 0.8]], np.float32)
    np.testing.assert_array_equal(on_the_sphere(normals), want)
    np.testing.assert_array_equal(on_the_sphere(np.array([[-0.5], [0.0]], np.float32)), [[-1], [1]])


def test_fresh_actions_every_round():
    environment = LinearBanditConfig(dim=3, n_actions=5, horizon=6, action_set="fresh", noise_std=0.0)
    index = np.array([3, 2**35 + 1])
    batch = envs.sample(environment, 4, Split.TEST, index)
    play = envs.interact(environment, batch, 4, Split.TEST)
    every = streams.uniforms(4, Split.TEST, Stream.ACTION_SET, index, 6 * 15).reshape(2, 6, 5, 3)
    np.testing.assert_array_equal(batch.action_set, 2 * every[:, 0] - 1)
    for t in range(6):
        x = 2 * every[:, t] - 1
        np.testing.assert_array_equal(play.observe(), x)
        exact = np.einsum("bad,bd->ba", x.astype(np.float64), batch.theta.astype(np.float64))
        np.testing.assert_array_equal(play.optimal_action(), exact.argmax(axis=1))
        action = np.array([t % 5, 4])
        gap = exact.max(axis=1) - exact[[0, 1], action]
        np.testing.assert_allclose(play.suboptimality(action), gap, atol=5e-7)
        np.testing.assert_allclose(play.step(action), exact[[0, 1], action], atol=5e-7)


@pytest.mark.parametrize("action_set", ["fixed", "fresh"])
def test_means_of_bernoulli_rewards_are_probabilities(action_set):
    """clip(<a, w*>, 0, 1), of which suboptimality is the difference and rewards have the frequency."""
    environment = LinearBanditConfig(
        dim=2, n_actions=3, horizon=400, prior="gaussian", noise="bernoulli", action_set=action_set
    )
    batch = envs.sample(environment, 0, Split.EVAL, np.arange(500))
    inner = np.einsum("bad,bd->ba", batch.action_set.astype(np.float64), batch.theta.astype(np.float64))
    np.testing.assert_allclose(batch.means, inner.clip(0, 1), atol=5e-7)
    assert (batch.means == 0).mean() > 0.3
    assert (batch.means == 1).any()
    play = envs.interact(environment, batch, 0, Split.EVAL)
    surplus, variance = 0.0, 0.0
    action = np.arange(500) % 3
    for _ in range(environment.horizon):
        x = batch.action_set if action_set == "fixed" else play.observe()
        means = np.einsum("bad,bd->ba", x.astype(np.float64), batch.theta.astype(np.float64)).clip(0, 1)
        p = means[np.arange(500), action]
        np.testing.assert_allclose(play.suboptimality(action), means.max(axis=1) - p, atol=5e-7)
        reward = play.step(action)
        assert set(np.unique(reward)) <= {0, 1}
        surplus += float((reward - p).sum())
        variance += float((p * (1 - p)).sum())
    assert abs(surplus) < 4 * np.sqrt(variance)


def test_bounded_noise_is_uniform_with_the_standard_deviation():
    environment = LinearBanditConfig(dim=1, n_actions=2, horizon=50, noise="bounded", noise_std=0.5)
    batch = envs.sample(environment, 0, Split.EVAL, np.arange(200))
    play = envs.interact(environment, batch, 0, Split.EVAL)
    action = np.zeros(200, np.int64)
    noise = np.array([play.step(action) - batch.means[:, 0] for _ in range(50)], np.float64)
    width = 0.5 * np.sqrt(3)
    assert np.abs(noise).max() <= width + 1e-6
    assert stats.kstest(noise.ravel(), "uniform", (-width, 2 * width)).pvalue > 0.01
    assert abs(noise.std() / 0.5 - 1) < 0.02
