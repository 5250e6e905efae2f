"""The algorithms of multi-armed bandits against hand-worked cases, each other, and MABWiser."""

import numpy as np
import pytest
from mabwiser.mab import MAB, LearningPolicy
from scipy import stats

from icrl import algorithms, envs
from icrl.config import (
    BernoulliBanditConfig,
    ConfigError,
    EpsilonGreedyConfig,
    GaussianBanditConfig,
    LinUCBConfig,
    MixtureComponent,
    MixtureConfig,
    OptimalConfig,
    PSRLConfig,
    TabularMDPConfig,
    ThompsonConfig,
    UCBConfig,
    UCBVIConfig,
    UniformConfig,
)
from icrl.streams import Split
from tests.fixed_draws import FixedDraws

BERNOULLI = BernoulliBanditConfig(n_actions=4, horizon=50)
GAUSSIAN = GaussianBanditConfig(n_actions=4, horizon=50, noise_std=0.7)


def started(config, count, environment=BERNOULLI):
    """The algorithm at the start of `count` interactions."""
    algorithm = algorithms.build(config, environment)
    algorithm.reset(envs.sample(environment, 0, Split.TEST, np.arange(count)))
    return algorithm


def history(rounds, count, seed=0, n_actions=4):
    """Actions int64[T, B], every action at first, and rewards 0 or 1 float32[T, B]."""
    rng = np.random.default_rng(seed)
    action = rng.integers(0, n_actions, (rounds, count))
    action[:n_actions] = np.arange(n_actions)[:, None]
    return action, rng.integers(0, 2, (rounds, count)).astype(np.float32)


def play(algorithm, action, reward):
    for a, r in zip(action, reward, strict=True):
        algorithm.update(a, r)


def uniforms(values):
    return FixedDraws(np.array(values, np.float32))


def test_ucb_by_hand():
    script = [  # action and reward; both indices are worked out below
        (0, 1.0),
        (1, 0.0),
        (2, 1.0),
        (3, 1.0),
        (0, 0.0),
    ]
    shrunk, ucb1 = (started(UCBConfig(index=index, bonus=2.0), 1) for index in ("shrunk", "ucb1"))
    np.testing.assert_array_equal(shrunk.indices(), [[2, 2, 2, 2]])
    np.testing.assert_array_equal(ucb1.indices(), [[np.inf] * 4])
    for algorithm in (shrunk, ucb1):
        for action, reward in script:
            algorithm.update(np.array([action]), np.array([reward], np.float32))
    root2, root3 = np.sqrt([2, 3])
    np.testing.assert_allclose(
        shrunk.indices(), [[1 / 3 + 2 / root3, 2 / root2, 1 / 2 + 2 / root2, 1 / 2 + 2 / root2]], rtol=1e-15
    )
    width = 2 * np.sqrt(2 * np.log(5))
    np.testing.assert_allclose(ucb1.indices(), [[1 / 2 + width / root2, width, 1 + width, 1 + width]], rtol=1e-15)
    for algorithm in (shrunk, ucb1):
        np.testing.assert_array_equal(algorithm.act(uniforms([0.9])), [2])  # actions 2 and 3 tie
        np.testing.assert_array_equal(algorithm.probabilities(), [[0, 0, 1, 0]])


@pytest.mark.parametrize("environment", [BERNOULLI, GAUSSIAN], ids=lambda e: e.kind)
def test_shrunk_ucb_is_linucb_on_unit_vectors(environment):
    ucb, linucb = (
        started(config, 20, environment) for config in (UCBConfig(bonus=1.5), LinUCBConfig(ridge=1, confidence=1.5))
    )
    for a, r in zip(*history(50, 20), strict=True):
        np.testing.assert_allclose(ucb.indices(), linucb.indices(), rtol=0, atol=1e-12)
        for algorithm in (ucb, linucb):
            algorithm.update(a, r)


@pytest.mark.parametrize("bonus", [1.0, 0.3])
def test_ucb1_indices_are_mabwisers(bonus):
    ours = started(UCBConfig(index="ucb1", bonus=bonus), 1)
    peer = MAB([0, 1, 2, 3], LearningPolicy.UCB1(alpha=bonus))
    action, reward = history(50, 1)
    for t in range(50):
        (peer.partial_fit if t else peer.fit)(action[t], reward[t].astype(np.float64))
        ours.update(action[t], reward[t])
        if t >= 3:  # each action was played
            expected = peer.predict_expectations()
            np.testing.assert_allclose(ours.indices()[0], [expected[a] for a in range(4)], rtol=1e-13)


def test_beta_posterior_is_mabwisers():
    ours = started(ThompsonConfig(), 1)
    peer = MAB([0, 1, 2, 3], LearningPolicy.ThompsonSampling())
    action, reward = history(50, 1)
    for t in range(50):
        (peer.partial_fit if t else peer.fit)(action[t], reward[t].astype(np.float64))
        ours.update(action[t], reward[t])
        a, b = ours.parameters()
        np.testing.assert_array_equal(a[0], [peer._imp.arm_to_success_count[arm] for arm in range(4)])
        np.testing.assert_array_equal(b[0], [peer._imp.arm_to_fail_count[arm] for arm in range(4)])


def test_thompson_plays_as_often_as_mabwiser():
    ours = started(ThompsonConfig(), 1)
    peer = MAB([0, 1, 2, 3], LearningPolicy.ThompsonSampling(), seed=3)
    action, reward = history(12, 1, seed=4)
    play(ours, action, reward)
    peer.fit(action[:, 0], reward[:, 0].astype(np.float64))
    counts = np.bincount(peer.predict([[0.0]] * 20_000), minlength=4)
    assert stats.chisquare(counts, 20_000 * ours.probabilities()[0]).pvalue > 0.01


def test_epsilon_greedy_plays_as_often_as_mabwiser():
    ours = started(EpsilonGreedyConfig(epsilon=0.3), 1)
    peer = MAB([0, 1, 2, 3], LearningPolicy.EpsilonGreedy(epsilon=0.3), seed=3)
    action, reward = history(15, 1, seed=1)
    play(ours, action, reward)
    peer.fit(action[:, 0], reward[:, 0].astype(np.float64))
    means = [peer._imp.arm_to_expectation[arm] for arm in range(4)]
    np.testing.assert_allclose(ours._tallies.means()[0], means, rtol=1e-15)
    counts = np.bincount([peer.predict() for _ in range(20_000)], minlength=4)
    assert stats.chisquare(counts, 20_000 * ours.probabilities()[0]).pvalue > 0.01


def test_epsilon_greedy_by_hand():
    algorithm = started(EpsilonGreedyConfig(epsilon=0.2), 5)
    # below 0.2 a quarter of it for each action; above it the greedy action, here the lowest unplayed one
    u = uniforms([0.0, 0.0501, 0.1999, 0.2, 0.99])
    np.testing.assert_array_equal(algorithm.act(u), [0, 1, 3, 0, 0])
    algorithm.update(np.zeros(5, np.int64), np.ones(5, np.float32))
    np.testing.assert_array_equal(algorithm.act(u), [0, 1, 3, 1, 1])
    np.testing.assert_allclose(algorithm.probabilities(), [[0.05, 0.85, 0.05, 0.05]] * 5, rtol=1e-15)
    never, always = (started(EpsilonGreedyConfig(epsilon=epsilon), 3) for epsilon in (0, 1))
    np.testing.assert_array_equal(never.act(uniforms([0, 0.5, 1 - 2**-24])), [0, 0, 0])
    np.testing.assert_array_equal(always.act(uniforms([0, 0.5, 1 - 2**-24])), [0, 2, 3])


def test_thompson_of_a_bernoulli_bandit_has_no_use_for_a_noise_variance():
    """A linear-Gaussian posterior would need one; the Beta posterior does not."""
    assert isinstance(algorithms.build(ThompsonConfig(), BERNOULLI), algorithms.BetaThompson)
    assert isinstance(algorithms.build(ThompsonConfig(), GAUSSIAN), algorithms.GaussianThompson)


def test_gaussian_thompson_probabilities_are_those_of_the_monte_carlo_without_its_error():
    config = ThompsonConfig(prior_variance=2.0)
    exact = started(config, 40, GAUSSIAN)
    sampled = algorithms.Thompson(config, GAUSSIAN)
    sampled.reset(envs.sample(GAUSSIAN, 0, Split.TEST, np.arange(40)))
    assert sampled.noise_variance == exact.noise_variance == pytest.approx(0.49)
    for algorithm in (exact, sampled):
        play(algorithm, *history(7, 40))
    p = exact.probabilities()
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-13)
    assert np.all(np.abs(sampled.probabilities() - p) < 4.5 * sampled.standard_error(p) + 1e-3)
    np.testing.assert_array_equal(exact.standard_error(p), 0)


MIXED = MixtureConfig(
    components=(
        MixtureComponent(UCBConfig(), 3.0),
        MixtureComponent(EpsilonGreedyConfig(epsilon=0.5), 0.0),
        MixtureComponent(UniformConfig(), 1.0),
        MixtureComponent(ThompsonConfig(), 2.0),
        MixtureComponent(OptimalConfig(), 0.0),
    )
)


def test_mixture_acts_as_the_component_that_is_drawn_and_all_see_the_rewards():
    mixture = started(MIXED, 300)
    alone = {name: started(config, 300) for name, config in (("u", UCBConfig()), ("r", UniformConfig()))}
    alone["t"] = started(ThompsonConfig(), 300)
    action, reward = history(20, 300)
    for t in range(20):
        draws = algorithms.StreamDraws(5, Split.TEST, np.arange(300))
        draws.round = t
        want = np.where(draws.component < 0.5, alone["u"].act(draws), alone["r"].act(draws))
        want = np.where(draws.component >= 4 / 6, alone["t"].act(draws), want)
        np.testing.assert_array_equal(mixture.act(draws), want)
        mixed = (3 * alone["u"].probabilities() + alone["r"].probabilities() + 2 * alone["t"].probabilities()) / 6
        np.testing.assert_allclose(mixture.probabilities(), mixed, rtol=1e-13)
        for algorithm in (mixture, *alone.values()):
            algorithm.update(action[t], reward[t])


def test_mixture_in_an_mdp_asks_all_components_in_every_round():
    """Posterior sampling draws its MDP at the start of an episode, whether it is its turn to act then or not."""
    environment = TabularMDPConfig(n_states=3, n_actions=3, episode_length=4, episodes=5)
    configs = (PSRLConfig(), UCBVIConfig(bonus=0.1), UniformConfig())
    mixture = algorithms.build(MixtureConfig(components=tuple(map(MixtureComponent, configs))), environment)
    alone = [algorithms.build(config, environment) for config in configs]
    batch = envs.sample(environment, 0, Split.TEST, np.arange(60))
    interaction = envs.interact(environment, batch, 0, Split.TEST)
    draws = algorithms.StreamDraws(0, Split.TEST, np.arange(60))
    for algorithm in (mixture, *alone):
        algorithm.reset(batch)
    seen = set()
    for draws.round in range(environment.horizon):
        observation = interaction.observe()
        for algorithm in (mixture, *alone):
            algorithm.observe(observation)
        turn = np.floor(3 * draws.component.astype(np.float64)).astype(np.int64)
        want = np.stack([algorithm.act(draws) for algorithm in alone])[turn, np.arange(60)]
        action = mixture.act(draws)
        np.testing.assert_array_equal(action, want)
        np.testing.assert_allclose(mixture.probabilities().sum(axis=1), 1, rtol=1e-12)
        reward = interaction.step(action)
        for algorithm in (mixture, *alone):
            algorithm.update(action, reward)
        seen |= set(turn.tolist())
    assert seen == {0, 1, 2}


def test_mixture_of_one_is_that_one_and_the_weights_are_relative():
    one = started(MixtureConfig(components=(MixtureComponent(UCBConfig(), 0.2),)), 50)
    ucb = started(UCBConfig(), 50)
    halves, fives = (
        started(MixtureConfig(components=(MixtureComponent(UCBConfig(), w), MixtureComponent(UniformConfig(), w))), 50)
        for w in (0.5, 5.0)
    )
    play(halves, *history(9, 50))
    play(fives, *history(9, 50))
    np.testing.assert_array_equal(halves.probabilities(), fives.probabilities())
    draws = algorithms.StreamDraws(0, Split.TEST, np.arange(50))
    np.testing.assert_array_equal(halves.act(draws), fives.act(draws))
    for a, r in zip(*history(20, 50), strict=True):
        np.testing.assert_array_equal(one.act(draws), ucb.act(draws))
        one.update(a, r)
        ucb.update(a, r)


def test_a_mixture_without_weight_is_refused():
    with pytest.raises(ConfigError, match="components"):
        MixtureConfig(components=(MixtureComponent(UCBConfig(), 0.0),))
