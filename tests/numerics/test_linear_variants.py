"""Priors, noises and fresh action sets in the compiled rollouts: against the general loop and float64 oracles."""

import itertools

import numpy as np
import pytest
from scipy import stats

from icrl import algorithms, envs
from icrl.config import (
    ContextComponent,
    EmpiricalMeanConfig,
    LinearBanditConfig,
    LinUCBConfig,
    OptimalConfig,
    ThompsonConfig,
    UniformConfig,
)
from icrl.rollout import compiled, generate
from icrl.rollout.loop import play
from icrl.streams import Split

VARIANTS = tuple(itertools.product(("unit_box", "gaussian", "sphere"), ("gaussian", "bounded", "bernoulli")))
LINEAR = (LinUCBConfig(), LinUCBConfig(temperature=0.3), ThompsonConfig(noise_variance=0.5))
ALL = (UniformConfig(), OptimalConfig(), *LINEAR)


def only(config):
    return (ContextComponent(config),)


def make(variant, action_set, **sizes):
    prior, noise = variant
    sizes = {"dim": 5, "n_actions": 10, "horizon": 60, "noise_std": 0.7} | sizes
    return LinearBanditConfig(prior=prior, noise=noise, action_set=action_set, **sizes)


def agree(environment, config, seed, index, *, exact):
    """Compiled and general loop; float32 and float64 part only where two actions tie."""
    assert compiled(environment, config)
    got = generate(environment, only(config), seed, Split.VALIDATION, index)
    want = play(environment, algorithms.build(config, environment), seed, Split.VALIDATION, index)
    same = (got.action == want.action).all(axis=1)
    assert same.mean() == 1 if exact else same.mean() >= 0.99
    np.testing.assert_array_equal(got.reward[same], want.reward[same])
    best = want.optimal_action if environment.action_set == "fresh" else want.optimal_action[:, 0]
    np.testing.assert_array_equal(got.optimal_action, best)


@pytest.mark.parametrize("action_set", ["fixed", "fresh"])
@pytest.mark.parametrize("variant", VARIANTS, ids="-".join)
def test_the_general_loop_plays_the_same(variant, action_set):
    configs = ALL if action_set == "fresh" else (*ALL, EmpiricalMeanConfig())
    for config in configs:
        exact = isinstance(config, UniformConfig | OptimalConfig) or config == LinUCBConfig()
        agree(make(variant, action_set), config, 1, np.arange(200), exact=exact)


@pytest.mark.parametrize(
    "sizes",
    [
        {"dim": 1, "n_actions": 2, "horizon": 3},
        {"dim": 4, "n_actions": 7, "horizon": 9},
        {"dim": 4, "n_actions": 32, "horizon": 33},
        {"dim": 4, "n_actions": 33, "horizon": 20},
        {"dim": 5, "n_actions": 255, "horizon": 20},
    ],
    ids=lambda sizes: f"d{sizes['dim']}A{sizes['n_actions']}",
)
@pytest.mark.parametrize("action_set", ["fixed", "fresh"])
def test_sizes(sizes, action_set):
    """Fewer and more actions than are compared one by one, more than a pass, the largest number; dim 4 ends a block."""
    index = np.arange(2**33, 2**33 + 150)
    for config in ALL:
        agree(make(("sphere", "gaussian"), action_set, **sizes), config, 2**40, index, exact=False)


@pytest.mark.parametrize("config", ALL, ids=lambda c: f"{c.algorithm}{getattr(c, 'temperature', '')}")
@pytest.mark.parametrize("variant", [("unit_box", "gaussian"), ("sphere", "bernoulli")], ids="-".join)
def test_fresh_bytes_do_not_depend_on_the_partition(variant, config):
    environment = make(variant, "fresh", n_actions=7, horizon=21)
    whole = generate(environment, only(config), 9, Split.TRAIN, np.arange(1000))
    order = np.random.default_rng(0).permutation(1000)
    for part in (np.arange(1), np.arange(1, 130), np.arange(517, 1000), order):
        got = generate(environment, only(config), 9, Split.TRAIN, part)
        for name in ("action", "reward", "optimal_action"):
            assert getattr(got, name).tobytes() == getattr(whole, name)[part].tobytes()
    longer = make(variant, "fresh", n_actions=7, horizon=50)
    np.testing.assert_array_equal(
        generate(longer, only(config), 9, Split.TRAIN, np.arange(150)).reward[:, :21], whole.reward[:150]
    )


def test_linucb_on_fresh_actions_plays_what_a_float64_solve_plays():
    environment, config = make(("unit_box", "gaussian"), "fresh", horizon=200), LinUCBConfig(ridge=0.5, confidence=1.0)
    index = np.arange(40, 72)
    got = generate(environment, only(config), 3, Split.TRAIN, index)
    batch = envs.sample(environment, 3, Split.TRAIN, index)
    interaction = envs.interact(environment, batch, 3, Split.TRAIN)
    gram, moment = np.tile(0.5 * np.eye(5), (32, 1, 1)), np.zeros((32, 5))
    for t in range(200):
        x = interaction.observe().astype(np.float64)
        solved = np.linalg.solve(gram, x.transpose(0, 2, 1))
        mean = np.einsum("bad,bd->ba", x, np.linalg.solve(gram, moment[:, :, None])[:, :, 0])
        j = (mean + np.sqrt(np.einsum("bad,bda->ba", x, solved))).argmax(axis=1)
        np.testing.assert_array_equal(got.action[:, t], j)
        reward = interaction.step(j)
        np.testing.assert_array_equal(got.reward[:, t], reward)
        played = x[np.arange(32), j]
        gram += played[:, :, None] * played[:, None, :]
        moment += played * reward[:, None].astype(np.float64)


def test_thompson_on_fresh_actions_is_calibrated():
    """Bayes: where w* comes from the prior that it assumes, w* is a draw from the posterior, however it has played."""
    environment = make(("gaussian", "gaussian"), "fresh", horizon=50, noise_std=1.0)
    config = ThompsonConfig(prior_variance=1.0, noise_variance=1.0)
    n = 400
    got = generate(environment, only(config), 5, Split.TRAIN, np.arange(n))
    batch = envs.sample(environment, 5, Split.TRAIN, np.arange(n))
    interaction = envs.interact(environment, batch, 5, Split.TRAIN)
    precision, moment = np.tile(np.eye(5), (n, 1, 1)), np.zeros((n, 5))
    for t in range(50):
        x = interaction.observe().astype(np.float64)[np.arange(n), got.action[:, t]]
        reward = interaction.step(got.action[:, t].astype(np.int64))
        np.testing.assert_array_equal(got.reward[:, t], reward)
        precision += x[:, :, None] * x[:, None, :]
        moment += x * reward[:, None].astype(np.float64)
    mean = np.linalg.solve(precision, moment[:, :, None])[:, :, 0]
    off = batch.theta - mean
    distance = np.einsum("bi,bij,bj->b", off, precision, off)  # chi-square with d degrees of freedom
    assert stats.kstest(distance, "chi2", (5,)).pvalue > 0.01


def test_a_play_that_makes_no_sense_is_refused():
    environment = make(("unit_box", "gaussian"), "fresh")
    assert not compiled(environment, EmpiricalMeanConfig())
    with pytest.raises(ValueError, match="action_set = fresh"):
        generate(environment, only(EmpiricalMeanConfig()), 0, Split.TRAIN, np.arange(3))
    with pytest.raises(ValueError, match="noise_variance"):
        generate(make(("unit_box", "bernoulli"), "fixed"), only(ThompsonConfig()), 0, Split.TRAIN, np.arange(3))
