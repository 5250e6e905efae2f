"""The batched algorithms against independent code: closed forms by `numpy.linalg`, hand-worked cases, MABWiser."""

import numpy as np
import pytest
from mabwiser.mab import MAB, LearningPolicy

from icrl import algorithms, envs, streams
from icrl.algorithms import LinUCB, Thompson
from icrl.config import (
    EmpiricalMeanConfig,
    LinearBanditConfig,
    LinUCBConfig,
    OptimalConfig,
    ThompsonConfig,
    UniformConfig,
)
from icrl.streams import Split, Stream
from tests.fixed_draws import FixedDraws

ENVIRONMENT = LinearBanditConfig(dim=3, n_actions=6, horizon=40)
CONFIGS = (
    UniformConfig(),
    OptimalConfig(),
    EmpiricalMeanConfig(),
    LinUCBConfig(),
    LinUCBConfig(temperature=0.3),
    ThompsonConfig(),
)


def environments(count, environment=ENVIRONMENT):
    return envs.sample(environment, 0, Split.TEST, np.arange(count))


def draws(count, t, d=3):
    indices = np.arange(count)
    return FixedDraws(
        streams.uniforms(0, Split.TEST, Stream.ALGORITHM, indices, 1, start=t)[:, 0],
        streams.normals(0, Split.TEST, Stream.ALGORITHM, indices, d, start=t * d),
    )


def random_history(batch, rounds, seed=0):
    """The same random actions and rewards for any algorithm: int64[T, B], float32[T, B]."""
    rng = np.random.default_rng(seed)
    B, A = batch.means.shape
    action = rng.integers(0, A, (rounds, B))
    return action, (batch.means[np.arange(B), action] + rng.normal(size=(rounds, B))).astype(np.float32)


def ridge_by_solve(x, y, ridge):
    gram = ridge * np.eye(x.shape[1]) + x.T @ x
    return np.linalg.solve(gram, x.T @ y), gram


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.algorithm}{getattr(c, 'temperature', '')}")
def test_probabilities_are_a_distribution_and_act_follows_it(config):
    batch = environments(3)
    copies = envs.sample(ENVIRONMENT, 0, Split.TEST, np.zeros(4000, np.int64))
    algorithm = algorithms.build(config, ENVIRONMENT)
    algorithm.reset(batch)
    many = algorithms.build(config, ENVIRONMENT)
    many.reset(copies)
    action, reward = random_history(batch, 8)
    for a, r in zip(action, reward, strict=True):
        algorithm.update(a, r)
        many.update(np.repeat(a[:1], 4000), np.repeat(r[:1], 4000))
    p = algorithm.probabilities()
    assert p.dtype == np.float64
    assert p.shape == (3, 6)
    assert p.min() >= 0
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-12)
    played = many.act(draws(4000, 8))
    assert played.dtype == np.int64
    frequency = np.bincount(played, minlength=6) / 4000
    error = np.sqrt(p[0] * (1 - p[0]) * (1 / 4000 + 1 / 1024))
    assert np.all(np.abs(frequency - p[0]) <= 4 * error + 2e-3 * (p[0] == 0))
    assert algorithm.name == config.algorithm


@pytest.mark.parametrize(("ridge", "confidence", "temperature"), [(1.0, 2.0, 0.3), (0.1, 0.5, 1.0), (4.0, 1.0, 0.05)])
def test_soft_linucb_against_the_closed_form(ridge, confidence, temperature):
    batch = environments(5)
    algorithm = LinUCB(LinUCBConfig(ridge=ridge, confidence=confidence, temperature=temperature))
    algorithm.reset(batch)
    action, reward = random_history(batch, 40)
    for t in range(40):
        got = algorithm.probabilities()
        for b in range(5):
            features = batch.action_set[b].astype(np.float64)
            w, gram = ridge_by_solve(features[action[:t, b]], reward[:t, b].astype(np.float64), ridge)
            width = np.sqrt(np.sum(features.T * np.linalg.solve(gram, features.T), axis=0))
            logit = (features @ w + confidence * width) / temperature
            want = np.exp(logit - logit.max())
            np.testing.assert_allclose(got[b], want / want.sum(), rtol=1e-9, atol=1e-14)
        algorithm.update(action[t], reward[t])


def test_hard_linucb_is_one_hot_and_the_limit_of_soft():
    batch = environments(50)
    hard, soft = LinUCB(LinUCBConfig()), LinUCB(LinUCBConfig(temperature=1e-6))
    for algorithm in (hard, soft):
        algorithm.reset(batch)
        for a, r in zip(*random_history(batch, 10), strict=True):
            algorithm.update(a, r)
    p = hard.probabilities()
    np.testing.assert_array_equal(np.sort(p, axis=1)[:, :-1], 0)
    np.testing.assert_array_equal(p.argmax(axis=1), hard.act(draws(50, 10)))
    np.testing.assert_allclose(soft.probabilities(), p, atol=1e-12)


def test_ties_go_to_the_lowest_action():
    action_set = np.ones((1, 3, 2), np.float32)
    batch = envs.BanditBatch(
        np.array([0]), np.ones((1, 2), np.float32), action_set, np.full((1, 3), 2, np.float32), np.array([0], np.uint8)
    )
    environment = LinearBanditConfig(dim=2, n_actions=3)
    for config in (LinUCBConfig(), ThompsonConfig(), EmpiricalMeanConfig()):
        algorithm = algorithms.build(config, environment)
        algorithm.reset(batch)
        assert algorithm.act(draws(1, 0, 2))[0] == 0


@pytest.mark.parametrize("ridge", [1.0, 0.5])
def test_linucb_indices_against_mabwiser(ridge):
    batch = environments(1)
    contexts = batch.action_set[0].astype(np.float64)
    algorithm = LinUCB(LinUCBConfig(ridge=ridge, confidence=2.0))
    algorithm.reset(batch)
    peer = MAB(["w"], LearningPolicy.LinUCB(alpha=2.0, l2_lambda=ridge))
    action, reward = random_history(batch, 40)
    for t in range(40):
        if t:  # before any data MABWiser's ridge is 1 whatever is asked
            want = [e["w"] for e in peer.predict_expectations(contexts)]
            np.testing.assert_allclose(algorithm.indices()[0], want, atol=1e-12)
        x, r = contexts[action[t]], reward[t].astype(np.float64)
        (peer.partial_fit if t else peer.fit)(["w"], r, x)
        algorithm.update(action[t], reward[t])


def test_thompson_posterior_against_mabwiser():
    """MABWiser samples N(mu, alpha^2 A^-1); ours is the same law with alpha^2 = r, ridge = r / lambda."""
    batch = environments(1)
    contexts = batch.action_set[0].astype(np.float64)
    count, r = 4000, 0.81
    config = ThompsonConfig(prior_variance=1.62, noise_variance=r)
    ours = Thompson(config, ENVIRONMENT)
    ours.reset(envs.sample(ENVIRONMENT, 0, Split.TEST, np.zeros(count, np.int64)))
    peer = MAB(["w"], LearningPolicy.LinTS(alpha=np.sqrt(r), l2_lambda=r / 1.62), seed=1)
    action, reward = random_history(batch, 12)
    peer.fit(["w"] * 12, reward[:, 0].astype(np.float64), contexts[action[:, 0]])
    for a, y in zip(action, reward, strict=True):
        ours.update(np.repeat(a, count), np.repeat(y, count))
    theirs = np.array([[e["w"] for e in peer.predict_expectations(contexts)] for _ in range(count)])
    w, gram = ridge_by_solve(contexts[action[:, 0]], reward[:, 0].astype(np.float64), r / 1.62)
    exact_mean = contexts @ w
    exact_variance = r * np.sum(contexts.T * np.linalg.solve(gram, contexts.T), axis=0)
    z = draws(count, 12).normals(3)
    mine = ours._posterior.means() + np.sqrt(r) * np.einsum("bad,bd->ba", ours._posterior.factors(), z)
    np.testing.assert_allclose(ours._posterior.means()[0], exact_mean, atol=1e-12)
    for sampled in (mine, theirs):
        assert np.all(np.abs(sampled.mean(axis=0) - exact_mean) < 4 * np.sqrt(exact_variance / count))
        assert np.all(np.abs(sampled.var(axis=0) / exact_variance - 1) < 4.5 * np.sqrt(2 / count))


def test_on_fresh_actions_against_mabwiser():
    """LinUCB's indices and the law of Thompson sampling's, where every round brings its own contexts."""
    environment = LinearBanditConfig(dim=3, n_actions=6, horizon=30, action_set="fresh", prior="gaussian")
    batch = environments(1, environment)
    interaction = envs.interact(environment, batch, 0, Split.TEST)
    linucb, r, count = LinUCB(LinUCBConfig(ridge=0.5, confidence=2.0)), 0.81, 4000
    thompson = Thompson(ThompsonConfig(prior_variance=1.62, noise_variance=r), environment)
    ucb_peer = MAB(["w"], LearningPolicy.LinUCB(alpha=2.0, l2_lambda=0.5))
    thompson_peer = MAB(["w"], LearningPolicy.LinTS(alpha=np.sqrt(r), l2_lambda=0.5), seed=1)
    linucb.reset(batch)
    thompson.reset(batch)
    rng = np.random.default_rng(0)
    for t in range(30):
        seen = interaction.observe()
        contexts = seen[0].astype(np.float64)
        linucb.observe(seen)
        thompson.observe(seen)
        if t:  # before any data MABWiser's ridge is 1 whatever is asked
            want = [e["w"] for e in ucb_peer.predict_expectations(contexts)]
            np.testing.assert_allclose(linucb.indices()[0], want, atol=1e-12)
        if t == 29:
            break
        action = rng.integers(0, 6, 1)
        reward = interaction.step(action)
        for peer in (ucb_peer, thompson_peer):
            (peer.partial_fit if t else peer.fit)(["w"], reward.astype(np.float64), contexts[action])
        linucb.update(action, reward)
        thompson.update(action, reward)
    theirs = np.array([[e["w"] for e in thompson_peer.predict_expectations(contexts)] for _ in range(count)])
    mean, factors = thompson._posterior.means()[0], thompson._posterior.factors()[0]
    variance = r * (factors**2).sum(axis=1)
    assert np.all(np.abs(theirs.mean(axis=0) - mean) < 4 * np.sqrt(variance / count))
    assert np.all(np.abs(theirs.var(axis=0) / variance - 1) < 4.5 * np.sqrt(2 / count))


@pytest.mark.parametrize("action_set", ["fixed", "fresh"])
def test_thompson_probabilities_against_a_million_samples(action_set):
    """Its 1024 samples within their stated standard error of 10^6 by numpy's generator, inverse and Cholesky."""
    environment = LinearBanditConfig(dim=3, n_actions=6, horizon=40, action_set=action_set)
    batch = environments(4, environment)
    interaction = envs.interact(environment, batch, 0, Split.TEST)
    algorithm = Thompson(ThompsonConfig(prior_variance=0.7, noise_variance=1.3), environment)
    algorithm.reset(batch)
    rng = np.random.default_rng(3)
    gram, moment = np.tile(1.3 / 0.7 * np.eye(3), (4, 1, 1)), np.zeros((4, 3))
    for t in range(13):
        seen = interaction.observe()
        algorithm.observe(seen)
        features = (batch.action_set if seen is None else seen).astype(np.float64)
        if t in (0, 3, 12):
            p = algorithm.probabilities()
            error = algorithm.standard_error(p)
            for b in range(4):
                root = np.linalg.cholesky(1.3 * np.linalg.inv(gram[b]))
                w = np.linalg.solve(gram[b], moment[b]) + rng.normal(size=(10**6, 3)) @ root.T
                exact = np.bincount((w @ features[b].T).argmax(axis=1), minlength=6) / 10**6
                assert np.all(np.abs(p[b] - exact) <= 4.5 * np.maximum(error[b], np.sqrt(exact / 1024)) + 1e-4)
        action = rng.integers(0, 6, 4)
        reward = interaction.step(action)
        algorithm.update(action, reward)
        played = features[np.arange(4), action]
        gram += played[:, :, None] * played[:, None, :]
        moment += played * reward[:, None].astype(np.float64)


def test_thompson_noise_variance():
    assert Thompson(ThompsonConfig(), LinearBanditConfig(noise_std=1.5)).noise_variance == 2.25
    assert Thompson(ThompsonConfig(noise_variance=0.5), LinearBanditConfig(noise_std=0)).noise_variance == 0.5
    with pytest.raises(ValueError, match="noise_variance"):
        algorithms.build(ThompsonConfig(), LinearBanditConfig(noise_std=0))


def test_thompson_two_actions_in_closed_form():
    """P(action 0) = Phi(gap / sd of the gap) for two actions."""
    from scipy.stats import norm

    environment = LinearBanditConfig(dim=3, n_actions=2)
    batch = environments(40, environment)
    algorithm = Thompson(ThompsonConfig(noise_variance=1.0), environment)
    algorithm.reset(batch)
    action, reward = random_history(batch, 6)
    for a, r in zip(action, reward, strict=True):
        algorithm.update(a, r)
    p = algorithm.probabilities()
    for b in range(40):
        x = batch.action_set[b].astype(np.float64)
        w, gram = ridge_by_solve(x[action[:, b]], reward[:, b].astype(np.float64), 1.0)
        gap = x[0] - x[1]
        exact = norm.cdf(gap @ w / np.sqrt(gap @ np.linalg.solve(gram, gap)))
        assert abs(p[b, 0] - exact) <= 4.5 * np.sqrt(exact * (1 - exact) / algorithm.samples) + 1e-3
    assert algorithm.standard_error(p).max() <= 1 / 64


def test_empirical_mean_by_hand():
    batch = environments(2, LinearBanditConfig(dim=1, n_actions=3))
    algorithm = algorithms.build(EmpiricalMeanConfig(), ENVIRONMENT)
    algorithm.reset(batch)
    script = [  # reward of each interaction -> the action that must have been played
        ((0, 0), (1.0, -1.0)),
        ((1, 1), (3.0, -5.0)),
        ((2, 2), (2.0, -1.0)),
        ((1, 0), (-1.0, -1.0)),  # means: 1, 1, 2 | -1, -5, -1: a tie
        ((2, 0), (-4.0, 5.0)),  # means: 1, 1, -1 | 1, -5, -1
        ((0, 0), (0.0, 0.0)),
    ]
    for t, (played, reward) in enumerate(script):
        action = algorithm.act(draws(2, t, 1))
        np.testing.assert_array_equal(action, played)
        np.testing.assert_array_equal(algorithm.probabilities().argmax(axis=1), played)
        algorithm.update(action, np.array(reward, np.float32))


def test_choose_inverts_the_cumulative_distribution():
    p = np.array([[0.25, 0.0, 0.5, 0.25]] * 6)
    u = np.array([0.0, 0.2499, 0.25, 0.7499, 0.75, 1 - 2**-24], np.float32)
    np.testing.assert_array_equal(algorithms.choose(p, u), [0, 0, 2, 2, 3, 3])
    np.testing.assert_array_equal(
        algorithms.choose(np.array([[0.5, 0.5, 0.0]]), np.array([1 - 2**-24], np.float32)), [1]
    )


def test_posterior_square_root_after_many_rounds():
    batch = environments(4)
    algorithm = LinUCB(LinUCBConfig(ridge=0.01))
    algorithm.reset(batch)
    action, reward = random_history(batch, 3000)
    for a, r in zip(action, reward, strict=True):
        algorithm.update(a, r)
    for b in range(4):
        x = batch.action_set[b].astype(np.float64)[action[:, b]]
        w, gram = ridge_by_solve(x, reward[:, b].astype(np.float64), 0.01)
        root = algorithm._posterior.root[b]
        np.testing.assert_allclose(root @ root.T, np.linalg.inv(gram), rtol=1e-8, atol=1e-12)
        np.testing.assert_allclose(algorithm._posterior.mean[b], w, rtol=1e-8, atol=1e-10)
