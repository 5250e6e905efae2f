"""PSRL: its posterior by counting, its probabilities by quadrature, independent simulation and what it plays."""

import numpy as np
import pytest
from scipy import integrate, stats

from icrl import algorithms, envs
from icrl.algorithms import PSRL, StreamDraws
from icrl.config import Config, ConfigError, ContextComponent, GridWorldConfig, PSRLConfig, TabularMDPConfig
from icrl.rollout.loop import play
from icrl.streams import Split

SHARED = TabularMDPConfig(n_states=2, n_actions=2, episode_length=3, episodes=30)
LAYERED = TabularMDPConfig(n_states=3, n_actions=2, episode_length=3, episodes=20, stationary=False)
ONE_STEP = TabularMDPConfig(n_states=2, n_actions=3, episode_length=1, episodes=40, start="random")
EXACT = TabularMDPConfig(n_states=3, n_actions=2, episode_length=2, episodes=40, reward_noise="none", start="random")


def told(environment, log, count=1, samples=None):
    """PSRL in `count` copies of one interaction that has seen the log: rows of (state, action, reward)."""
    algorithm = PSRL(PSRLConfig(), environment)
    if samples is not None:
        algorithm.samples = samples
    algorithm.reset(envs.sample(environment, 0, Split.TEST, np.zeros(count, np.int64)))
    for state, action, reward in log:
        algorithm.observe(np.full(count, int(state)))
        algorithm.update(np.full(count, int(action)), np.full(count, reward, np.float32))
    return algorithm


def random_log(environment, rounds, seed=0):
    rng = np.random.default_rng(seed)
    return [
        (rng.integers(environment.n_states), rng.integers(environment.n_actions), rng.integers(2))
        for _ in range(rounds)
    ]


@pytest.mark.parametrize("environment", [SHARED, LAYERED], ids=["shared", "layered"])
def test_posterior_by_counting(environment):
    H, S, A = environment.episode_length, environment.n_states, environment.n_actions
    L = 1 if environment.stationary else H
    log = random_log(environment, 7 * H + 2)
    algorithm = told(environment, log)
    want = np.ones((L, S, A, S + 2))
    for t in range(7 * H):  # the two rounds of the eighth episode are not counted yet
        (s, a, r), layer = log[t], min(t % H, L - 1)
        if t % H < H - 1:
            want[layer, s, a, log[t + 1][0]] += 1
        want[layer, s, a, S + 1 - r] += 1
    np.testing.assert_array_equal(algorithm.posterior[0], want)
    algorithm = told(environment, [*log, (0, 0, 1)])
    assert algorithm.posterior.sum() == L * S * A * (S + 2) + 8 * (H - 1) + 8 * H


def test_probabilities_of_one_step_by_quadrature():
    """With H = 1 PSRL is Thompson sampling in every state: P(a) = int f_a prod_b F_b over the Beta posteriors."""
    log = random_log(ONE_STEP, 25)
    algorithm = told(ONE_STEP, log, samples=40_000)
    algorithm.observe(np.array([1]))
    posterior = [stats.beta(*algorithm.posterior[0, 0, 1, a, 2:]) for a in range(3)]
    exact = []
    for a in range(3):
        others = [posterior[b] for b in range(3) if b != a]
        exact.append(integrate.quad(lambda x, a=a, o=others: posterior[a].pdf(x) * o[0].cdf(x) * o[1].cdf(x), 0, 1)[0])
    assert sum(exact) == pytest.approx(1, abs=1e-7)
    assert np.ptp(exact) > 0.1
    p = algorithm.probabilities()[0]
    assert np.all(np.abs(p - exact) < 4.5 * np.sqrt(np.array(exact) * (1 - np.array(exact)) / 40_000))
    np.testing.assert_allclose(algorithm.standard_error(p[None])[0], np.sqrt(p * (1 - p) / 40_000))
    n = 40_000  # what is played, with the draws of as many trajectories
    many = told(ONE_STEP, log, n)
    many.observe(np.ones(n, np.int64))
    draws = StreamDraws(0, Split.TEST, np.arange(n))
    draws.round = 25
    assert stats.chisquare(np.bincount(many.act(draws), minlength=3), n * np.array(exact) / sum(exact)).pvalue > 0.005


@pytest.mark.parametrize("environment", [SHARED, LAYERED], ids=["shared", "layered"])
def test_probabilities_within_an_episode_against_simulation(environment):
    """The law of the second action given the first, from 200,000 posterior samples drawn and solved by NumPy."""
    H, S, A = environment.episode_length, environment.n_states, environment.n_actions
    log = random_log(environment, 4 * H, seed=3)
    algorithm = told(environment, log, samples=20_000)
    rng, n = np.random.default_rng(5), 200_000
    posterior = algorithm.posterior[0] if environment.stationary else None
    algorithm.observe(np.zeros(1, np.int64))
    posterior = algorithm.posterior[0].astype(np.float64)
    L = len(posterior)
    law = [[[rng.dirichlet(posterior[h, s, a, :S], n) for a in range(A)] for s in range(S)] for h in range(L)]
    mean = [[[rng.beta(*posterior[h, s, a, S:], n) for a in range(A)] for s in range(S)] for h in range(L)]
    value, policy = np.zeros((n, S)), np.empty((H, S, n), int)
    for h in range(H - 1, -1, -1):
        at = min(h, L - 1)
        q = np.array([[mean[at][s][a] + np.sum(law[at][s][a] * value, axis=1) for a in range(A)] for s in range(S)])
        policy[h], value = q.argmax(axis=1), q.max(axis=1).T
    first = np.bincount(policy[0, 0], minlength=A) / n
    p = algorithm.probabilities()
    assert np.all(np.abs(p[0] - first) < 4.5 * np.sqrt(first * (1 - first) * (1 / n + 1 / 20_000)))
    played = int(first.argmin())
    consistent = policy[0, 0] == played
    second = np.bincount(policy[1, 0, consistent], minlength=A) / consistent.sum()
    unconditional = np.bincount(policy[1, 0], minlength=A) / n
    if environment.stationary:
        assert np.abs(second - unconditional).max() > 0.05  # the condition matters, or this would test nothing
    algorithm.update(np.array([played]), np.ones(1, np.float32))
    algorithm.observe(np.zeros(1, np.int64))
    p = algorithm.probabilities()
    error = algorithm.standard_error(p)
    assert 0 < error.max() < 0.02
    assert np.all(np.abs(p[0] - second) < 4.5 * np.sqrt(error[0] ** 2 + second * (1 - second) / consistent.sum()))


def test_what_is_played_follows_the_probabilities_within_an_episode():
    n, log = 20_000, random_log(SHARED, 12, seed=3)
    algorithm, many = told(SHARED, log, samples=20_000), told(SHARED, log, n)
    draws = StreamDraws(1, Split.TEST, np.arange(n))
    draws.round = 12
    many.observe(np.zeros(n, np.int64))
    action = many.act(draws)
    many.update(action, np.zeros(n, np.float32))
    draws.round = 13
    many.observe(np.zeros(n, np.int64))
    following = many.act(draws)
    for played in range(2):
        algorithm.observe(np.zeros(1, np.int64))
        p = algorithm.probabilities()[0]
        assert abs((action == played).mean() - p[played]) < 4.5 * np.sqrt(p[0] * p[1] * 2 / n)
    algorithm.update(np.array([played]), np.zeros(1, np.float32))
    algorithm.observe(np.zeros(1, np.int64))
    p, share = algorithm.probabilities()[0], (action == played).sum()
    error = np.sqrt(algorithm.standard_error(p[None])[0, 0] ** 2 + p[0] * p[1] / share)
    assert abs((following[action == played] == 0).mean() - p[0]) < 4.5 * error


def test_rewards_without_noise_are_known_once_seen():
    rewards = np.array([[0.2, 0.7], [0.9, 0.1], [0.4, 0.5]], np.float32)
    log = [(s, a, rewards[s, a]) for s in range(3) for a in range(2)]
    algorithm = told(EXACT, log)
    assert np.all(algorithm.posterior[0, 0, ..., 3:] == 1)  # Beta parameters are for noisy rewards
    algorithm.observe(np.array([0]))
    algorithm.update(np.array([0]), rewards[:1, 0])
    for state, best in enumerate(rewards.argmax(axis=1)):  # at the last step only the rewards count
        algorithm.observe(np.array([state]))
        np.testing.assert_array_equal(algorithm.probabilities()[0], np.eye(2)[best])


def test_a_history_that_no_sample_plays_has_an_infinite_error():
    rewards = np.array([[0.0, 1.0], [0.9, 0.1], [0.4, 0.5]], np.float32)
    environment = TabularMDPConfig(n_states=3, n_actions=2, episode_length=3, episodes=9, reward_noise="none")
    algorithm = told(environment, [(s, a, rewards[s, a]) for s in range(3) for a in range(2)] * 2)
    for action in (1, 1):
        algorithm.observe(np.array([0]))
        p = algorithm.probabilities()
        assert np.isfinite(algorithm.standard_error(p)).all()
        algorithm.update(np.array([action]), rewards[:1, action])
    algorithm._actions[:, 1] = 0
    algorithm._states[:, 1] = 0
    algorithm._sampled[:, :, 1, 0] = 1  # as if no sample played action 0 there
    algorithm.observe(np.array([1]))
    p = algorithm.probabilities()
    np.testing.assert_allclose(p.sum(), 1)
    assert np.isinf(algorithm.standard_error(p)).all()


def test_asking_for_probabilities_changes_nothing():
    class Curious(PSRL):
        def act(self, draws):
            self.probabilities()
            return super().act(draws)

    index = np.arange(5)
    plain = play(LAYERED, algorithms.build(PSRLConfig(), LAYERED), 0, Split.EVAL, index)
    asked = play(LAYERED, Curious(PSRLConfig(), LAYERED), 0, Split.EVAL, index)
    np.testing.assert_array_equal(plain.action, asked.action)


def test_it_learns():
    environment = TabularMDPConfig(n_states=3, n_actions=3, episode_length=4, episodes=60)
    played = play(environment, algorithms.build(PSRLConfig(), environment), 0, Split.EVAL, np.arange(100))
    regret = played.suboptimality.reshape(100, 60, 4).sum(axis=(0, 2))
    assert regret[-10:].mean() < 0.3 * regret[:10].mean()


def test_more_numbers_than_a_stream_has_are_refused():
    environment = GridWorldConfig(side=15, episode_length=1, episodes=20_000)
    with pytest.raises(ValueError, match=r"psrl.*episodes"):
        algorithms.build(PSRLConfig(), environment)
    with pytest.raises(ConfigError, match=r"context\[0\]\.algorithm = 'psrl'.*lower environment\.episodes"):
        Config(environment=environment, context=(ContextComponent(PSRLConfig()),))
