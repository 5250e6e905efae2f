"""The compiled rollouts against float64 oracles written here, the general loop, and each other."""

import itertools

import numpy as np
import pytest
from scipy import stats

from icrl import algorithms, envs, streams
from icrl.config import (
    ContextComponent,
    EmpiricalMeanConfig,
    LinearBanditConfig,
    LinUCBConfig,
    OptimalConfig,
    ThompsonConfig,
    UniformConfig,
)
from icrl.rollout import components, generate
from icrl.rollout.loop import play
from icrl.streams import Split, Stream

PAPER = LinearBanditConfig(dim=5, n_actions=10, horizon=200, noise_std=1.5)
SMALL = LinearBanditConfig(dim=3, n_actions=4, horizon=37, noise_std=0.5)
WIDE = LinearBanditConfig(dim=20, n_actions=33, horizon=50, noise_std=1.0)
LINE = LinearBanditConfig(dim=1, n_actions=2, horizon=3, noise_std=0.0)
ALL = (
    UniformConfig(),
    OptimalConfig(),
    EmpiricalMeanConfig(),
    LinUCBConfig(),
    LinUCBConfig(temperature=0.3),
    ThompsonConfig(noise_variance=1.0),
)


def only(config):
    return (ContextComponent(config),)


def name(value):
    if isinstance(value, LinearBanditConfig):
        return f"d{value.dim}A{value.n_actions}T{value.horizon}"
    return f"{value.algorithm}{getattr(value, 'temperature', '')}"


def linucb_by_solve(environment, config, batch, b, noise):
    """One interaction, everything solved afresh each round in float64."""
    x = batch.action_set[b].astype(np.float64)
    gram, moment = config.ridge * np.eye(environment.dim), np.zeros(environment.dim)
    actions = []
    for t in range(environment.horizon):
        width = np.sqrt(np.sum(x.T * np.linalg.solve(gram, x.T), axis=0))
        j = int(np.argmax(x @ np.linalg.solve(gram, moment) + config.confidence * width))
        reward = np.float64(batch.means[b, j]) + environment.noise_std * np.float64(noise[b, t])
        gram += np.outer(x[j], x[j])
        moment += reward * x[j]
        actions.append(j)
    return actions


@pytest.mark.parametrize("environment", [PAPER, SMALL, WIDE], ids=name)
@pytest.mark.parametrize("config", [LinUCBConfig(), LinUCBConfig(ridge=0.05, confidence=0.7)], ids=["paper", "other"])
def test_linucb_plays_what_a_float64_solve_plays(environment, config):
    index = np.arange(1000, 1064)
    got = generate(environment, only(config), 3, Split.TRAIN, index)
    batch = envs.sample(environment, 3, Split.TRAIN, index)
    noise = streams.normals(3, Split.TRAIN, Stream.REWARD, index, environment.horizon)
    want = [linucb_by_solve(environment, config, batch, b, noise) for b in range(64)]
    np.testing.assert_array_equal(got.action, np.array(want))


@pytest.mark.parametrize("environment", [PAPER, SMALL, WIDE, LINE], ids=name)
@pytest.mark.parametrize("config", ALL, ids=name)
def test_environments_and_rewards_are_those_of_sample(environment, config):
    index = np.array([5, 2**33 + 1, 0, 77])
    got = generate(environment, only(config), 2**40 + 1, Split.TEST, index)
    batch = envs.sample(environment, 2**40 + 1, Split.TEST, index)
    noise = streams.normals(2**40 + 1, Split.TEST, Stream.REWARD, index, environment.horizon)
    means = np.take_along_axis(batch.means, got.action.astype(np.int64), axis=1)
    np.testing.assert_array_equal(got.reward, means + np.float32(environment.noise_std) * noise)
    np.testing.assert_array_equal(got.optimal_action, batch.optimal_action)
    np.testing.assert_array_equal(got.index, index)
    assert got.action.dtype == got.optimal_action.dtype == got.source.dtype == np.uint8
    assert got.reward.dtype == np.float32
    assert got.action.max() < environment.n_actions


@pytest.mark.parametrize("config", ALL, ids=name)
def test_the_general_loop_plays_the_same(config):
    """float32 in arm space against float64 in d space, from the same draws: they part only where two actions tie."""
    index = np.arange(300)
    compiled = generate(PAPER, only(config), 0, Split.VALIDATION, index)
    played = play(PAPER, algorithms.build(config, PAPER), 0, Split.VALIDATION, index)
    same = (compiled.action == played.action).all(axis=1)
    exact = not isinstance(config, ThompsonConfig | EmpiricalMeanConfig) and getattr(config, "temperature", 0) == 0
    assert same.mean() == 1 if exact else same.mean() >= 0.99
    np.testing.assert_array_equal(compiled.reward[same], played.reward[same])


@pytest.mark.parametrize("environment", [SMALL, LINE], ids=name)
@pytest.mark.parametrize("config", ALL, ids=name)
def test_any_partition_and_order_gives_the_same_bytes(environment, config):
    whole = generate(environment, only(config), 9, Split.TRAIN, np.arange(1000))
    for low, high in itertools.pairwise([0, 1, 130, 517, 1000]):
        part = generate(environment, only(config), 9, Split.TRAIN, np.arange(low, high))
        assert part.action.tobytes() == whole.action[low:high].tobytes()
        assert part.reward.tobytes() == whole.reward[low:high].tobytes()
    order = np.random.default_rng(0).permutation(1000)
    shuffled = generate(environment, only(config), 9, Split.TRAIN, order)
    assert shuffled.action.tobytes() == whole.action[order].tobytes()
    assert shuffled.reward.tobytes() == whole.reward[order].tobytes()
    assert shuffled.optimal_action.tobytes() == whole.optimal_action[order].tobytes()


def test_a_longer_horizon_continues_the_same_trajectories():
    longer = LinearBanditConfig(dim=3, n_actions=4, horizon=60, noise_std=0.5)
    for config in ALL:
        short = generate(SMALL, only(config), 0, Split.TRAIN, np.arange(150))
        long = generate(longer, only(config), 0, Split.TRAIN, np.arange(150))
        np.testing.assert_array_equal(short.action, long.action[:, :37])
        np.testing.assert_array_equal(short.reward, long.reward[:, :37])


def test_mixture():
    context = tuple(ContextComponent(c, w) for c, w in zip(ALL, (1.0, 0.0, 3.0, 2.0, 0.0, 4.0), strict=True))
    index = np.arange(3000)
    mixed = generate(SMALL, context, 0, Split.TRAIN, index)
    np.testing.assert_array_equal(mixed.source, components(context, 0, Split.TRAIN, index))
    assert stats.chisquare(np.bincount(mixed.source, minlength=6)[[0, 2, 3, 5]], [300, 900, 600, 1200]).pvalue > 0.01
    assert set(mixed.source) == {0, 2, 3, 5}
    for number in (0, 2, 3, 5):
        rows = mixed.source == number
        alone = generate(SMALL, only(ALL[number]), 0, Split.TRAIN, index[rows])
        np.testing.assert_array_equal(mixed.action[rows], alone.action)
        np.testing.assert_array_equal(mixed.reward[rows], alone.reward)
    # weights are relative, and the source is independent of the environment
    scaled = tuple(ContextComponent(c.algorithm, 10 * c.weight) for c in context)
    np.testing.assert_array_equal(mixed.source, components(scaled, 0, Split.TRAIN, index))
    table = np.zeros((6, 4))
    np.add.at(table, (mixed.source, mixed.optimal_action), 1)
    assert stats.chi2_contingency(table[[0, 2, 3, 5]]).pvalue > 0.01


@pytest.mark.parametrize("environment", [PAPER, SMALL], ids=name)
def test_thompson_in_law(environment):
    """Rank of the played action's features along the first axis, against inverse + Cholesky with other randomness."""
    n, variance, prior = 4000, 2.25, 1.0
    index = np.arange(n)
    config = ThompsonConfig(prior_variance=prior, noise_variance=variance)
    got = generate(environment, only(config), 1, Split.TRAIN, index)
    batch = envs.sample(environment, 1, Split.TRAIN, np.arange(n, 2 * n))
    x, d = batch.action_set.astype(np.float64), environment.dim
    rng = np.random.default_rng(1)
    precision, moment = np.tile(variance / prior * np.eye(d), (n, 1, 1)), np.zeros((n, d))
    mine = envs.sample(environment, 1, Split.TRAIN, index).means.argsort(axis=1).argsort(axis=1)
    theirs = batch.means.argsort(axis=1).argsort(axis=1)
    for t in range(1, 21):
        covariance = np.linalg.inv(precision)
        root = np.linalg.cholesky(variance * covariance)
        w = np.einsum("bij,bj->bi", covariance, moment) + np.einsum("bij,bj->bi", root, rng.normal(size=(n, d)))
        j = np.einsum("bad,bd->ba", x, w).argmax(axis=1)
        if t in (1, 5, 20):
            table = np.zeros((2, environment.n_actions))
            np.add.at(table[0], mine[index, got.action[:, t - 1]], 1)
            np.add.at(table[1], theirs[index, j], 1)
            assert stats.chi2_contingency(table).pvalue > 0.005, t
        played = x[index, j]
        reward = batch.means[index, j] + environment.noise_std * rng.normal(size=n)
        precision += played[:, :, None] * played[:, None, :]
        moment += played * reward[:, None]


def test_soft_linucb_follows_its_closed_form_along_a_trajectory():
    """Calibration of the sampled actions: sum of (1{a_t = a} - p_t(a)) is a martingale with a known variance."""
    config = LinUCBConfig(ridge=0.5, confidence=1.0, temperature=0.5)
    n = 200
    batch = envs.sample(SMALL, 0, Split.TRAIN, np.arange(n))
    got = generate(SMALL, only(config), 0, Split.TRAIN, np.arange(n))
    u = streams.uniforms(0, Split.TRAIN, Stream.ALGORITHM, np.arange(n), SMALL.horizon)
    surplus, variance = np.zeros(4), np.zeros(4)
    for b in range(n):
        x = batch.action_set[b].astype(np.float64)
        gram, moment = config.ridge * np.eye(3), np.zeros(3)
        for t in range(SMALL.horizon):
            width = np.sqrt(np.sum(x.T * np.linalg.solve(gram, x.T), axis=0))
            logit = (x @ np.linalg.solve(gram, moment) + config.confidence * width) / config.temperature
            p = np.exp(logit - logit.max())
            p /= p.sum()
            j = got.action[b, t]
            edges = np.concatenate([[0], np.cumsum(p)])
            assert edges[j] - 2e-5 <= u[b, t] <= edges[j + 1] + 2e-5
            surplus += (np.arange(4) == j) - p
            variance += p * (1 - p)
            gram += np.outer(x[j], x[j])
            moment += np.float64(got.reward[b, t]) * x[j]
    assert np.all(np.abs(surplus) < 4 * np.sqrt(variance))


def test_empirical_mean_by_hand():
    got = generate(PAPER, only(EmpiricalMeanConfig()), 0, Split.TRAIN, np.arange(150))
    np.testing.assert_array_equal(got.action[:, :10], np.tile(np.arange(10), (150, 1)))
    for b in range(150):
        total, count = got.reward[b, :10].astype(np.float64), np.ones(10)
        for t in range(10, 200):
            mean = total / count
            j = got.action[b, t]
            assert mean[j] >= mean.max() - 1e-5
            total[j] += got.reward[b, t]
            count[j] += 1


def test_uniform_regret_is_its_closed_form():
    """E<a* - a, w*> of a uniform action given the environment is max - mean of the means."""
    index = np.arange(2000)
    batch = envs.sample(PAPER, 0, Split.EVAL, index)
    got = generate(PAPER, only(UniformConfig()), 0, Split.EVAL, index)
    means = np.take_along_axis(batch.means, got.action.astype(np.int64), axis=1).sum(axis=1, dtype=np.float64)
    expected = PAPER.horizon * batch.means.mean(axis=1, dtype=np.float64)
    error = np.sqrt(PAPER.horizon * batch.means.var(axis=1, dtype=np.float64).sum())
    assert abs(means.sum() - expected.sum()) < 4 * error
    assert stats.chisquare(np.bincount(got.action.ravel(), minlength=10)).pvalue > 0.01


def test_play_reports_noise_free_suboptimality():
    played = play(SMALL, algorithms.build(OptimalConfig(), SMALL), 0, Split.EVAL, np.arange(20))
    assert not played.suboptimality.any()
    played = play(SMALL, algorithms.build(UniformConfig(), SMALL), 0, Split.EVAL, np.arange(20))
    batch = envs.sample(SMALL, 0, Split.EVAL, np.arange(20))
    gap = batch.means.max(axis=1, keepdims=True) - batch.means
    np.testing.assert_array_equal(played.suboptimality, np.take_along_axis(gap, played.action.astype(np.int64), axis=1))
    assert played.suboptimality.min() >= 0


def test_no_indices_and_bad_indices():
    assert generate(SMALL, only(LinUCBConfig()), 0, Split.TRAIN, np.arange(0)).action.shape == (0, 37)
    with pytest.raises(ValueError, match="indices"):
        generate(SMALL, only(LinUCBConfig()), 0, Split.TRAIN, np.array([-1]))
