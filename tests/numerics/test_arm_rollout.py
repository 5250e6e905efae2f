"""The compiled rollout of multi-armed bandits against the general loop, and its bytes."""

import hashlib
import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from icrl import algorithms, envs, rollout
from icrl.config import (
    BernoulliBanditConfig,
    ContextComponent,
    EmpiricalMeanConfig,
    EpsilonGreedyConfig,
    GaussianBanditConfig,
    LinUCBConfig,
    MixtureComponent,
    MixtureConfig,
    OptimalConfig,
    ThompsonConfig,
    UCBConfig,
    UniformConfig,
)
from icrl.rollout import components, generate
from icrl.rollout.loop import play
from icrl.streams import Split

PAPER = BernoulliBanditConfig(n_actions=5, horizon=200)
TWO = BernoulliBanditConfig(n_actions=2, horizon=3)
MANY = BernoulliBanditConfig(n_actions=23, horizon=61)
GAUSSIAN = GaussianBanditConfig(n_actions=5, horizon=200)
WIDE = GaussianBanditConfig(n_actions=17, horizon=50, noise_std=0.3, prior_std=2.0)
ENVIRONMENTS = (PAPER, TWO, MANY, GAUSSIAN, WIDE)
ALL = (
    UniformConfig(),
    OptimalConfig(),
    EmpiricalMeanConfig(),
    EpsilonGreedyConfig(epsilon=0.2),
    EpsilonGreedyConfig(epsilon=0.0),
    UCBConfig(),
    UCBConfig(bonus=0.3),
    UCBConfig(index="ucb1"),
    UCBConfig(index="ucb1", bonus=0.0),
    ThompsonConfig(),
    ThompsonConfig(prior_variance=4.0, noise_variance=0.5),
)
PINNED = "513a9c51266876d5545be9df97cff56ae358d7af8f233b1011e62cc7cb4d3147"


def only(config):
    return (ContextComponent(config),)


def name(value):
    return "-".join(str(v) for v in vars(value).values() if v is not None)


def first_tie_or_difference(environment, config, batch, played, other):
    """How far apart, in the float64 index, the two actions are where this play and another one first part.

    batch: one environment; played and other: int[T] actions, then float32[T] rewards of the first.
    """
    action, reward = played
    t = int(np.flatnonzero(action != other)[0])
    algorithm = algorithms.build(config, environment)
    algorithm.reset(batch)
    for s in range(t):
        algorithm.update(action[s : s + 1].astype(np.int64), reward[s : s + 1])
    index = algorithm.indices()[0] if hasattr(algorithm, "indices") else algorithm._tallies.means()[0]
    return abs(index[action[t]] - index[other[t]])


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=name)
@pytest.mark.parametrize("config", ALL, ids=name)
def test_the_general_loop_plays_the_same(environment, config):
    """float32 against float64 from the same draws: they may part only where two indices tie."""
    assert rollout.compiled(environment, config)
    index = np.arange(2000)
    got = generate(environment, only(config), 0, Split.VALIDATION, index)
    want = play(environment, algorithms.build(config, environment), 0, Split.VALIDATION, index)
    same = (got.action == want.action).all(axis=1)
    np.testing.assert_array_equal(got.reward[same], want.reward[same])
    if isinstance(config, ThompsonConfig):
        # Beta draws are the same bytes; a Gaussian posterior's two samples may be as close as float32 can tell
        assert same.all() if isinstance(environment, BernoulliBanditConfig) else same.mean() > 0.99
        return
    for b in np.flatnonzero(~same):
        batch = envs.sample(environment, 0, Split.VALIDATION, index[b : b + 1])
        gap = first_tie_or_difference(environment, config, batch, (want.action[b], want.reward[b]), got.action[b])
        assert gap < 1e-5
    assert same.mean() > 0.99


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=name)
@pytest.mark.parametrize("config", ALL, ids=name)
def test_environments_and_rewards_are_those_of_sample(environment, config):
    index, seed = np.array([5, 2**33 + 1, 0, 77]), 2**40 + 1
    got = generate(environment, only(config), seed, Split.TEST, index)
    batch = envs.sample(environment, seed, Split.TEST, index)
    interaction = envs.interact(environment, batch, seed, Split.TEST)
    for t in range(environment.horizon):
        np.testing.assert_array_equal(got.reward[:, t], interaction.step(got.action[:, t].astype(np.int64)))
    np.testing.assert_array_equal(got.optimal_action, batch.optimal_action)
    np.testing.assert_array_equal(got.index, index)
    assert got.action.dtype == got.optimal_action.dtype == got.source.dtype == np.uint8
    assert got.reward.dtype == np.float32
    assert got.action.max() < environment.n_actions
    if isinstance(environment, BernoulliBanditConfig):
        assert set(np.unique(got.reward)) <= {0.0, 1.0}


@pytest.mark.parametrize("environment", [TWO, MANY, WIDE], ids=name)
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


@pytest.mark.parametrize("environment", [MANY, WIDE], ids=name)
def test_a_longer_horizon_continues_the_same_trajectories(environment):
    longer = type(environment)(**(vars(environment) | {"horizon": environment.horizon + 30}))
    for config in ALL:
        short = generate(environment, only(config), 0, Split.TRAIN, np.arange(150))
        long = generate(longer, only(config), 0, Split.TRAIN, np.arange(150))
        np.testing.assert_array_equal(short.action, long.action[:, : environment.horizon])
        np.testing.assert_array_equal(short.reward, long.reward[:, : environment.horizon])


def test_mixtures_at_both_levels():
    """A context of two draws one a trajectory; a `mixture` draws one a round, and is played by the general loop."""
    rounds = MixtureConfig(components=(MixtureComponent(ThompsonConfig(), 1.0), MixtureComponent(UniformConfig(), 3.0)))
    context = (ContextComponent(ThompsonConfig(), 0.5), ContextComponent(UniformConfig(), 0.5), *only(rounds))
    index = np.arange(600)
    mixed = generate(MANY, context, 0, Split.TRAIN, index)
    np.testing.assert_array_equal(mixed.source, components(context, 0, Split.TRAIN, index))
    assert stats.chisquare(np.bincount(mixed.source), [150, 150, 300]).pvalue > 0.01
    assert [rollout.compiled(MANY, component.algorithm) for component in context] == [True, True, False]
    for number, component in enumerate(context):
        rows = mixed.source == number
        alone = generate(MANY, only(component.algorithm), 0, Split.TRAIN, index[rows])
        np.testing.assert_array_equal(mixed.action[rows], alone.action)
        np.testing.assert_array_equal(mixed.reward[rows], alone.reward)


def test_linucb_of_a_multi_armed_bandit_goes_through_the_general_loop():
    assert not rollout.compiled(PAPER, LinUCBConfig())
    linucb = generate(PAPER, only(LinUCBConfig(ridge=1.0, confidence=1.0)), 0, Split.TRAIN, np.arange(300))
    ucb = generate(PAPER, only(UCBConfig()), 0, Split.TRAIN, np.arange(300))
    # float64 sums of rounded squares against one division: they part where two indices tie
    assert (linucb.action == ucb.action).all(axis=1).mean() > 0.9


def digest():
    """SHA-256 over trajectories of every algorithm in every environment."""
    total = hashlib.sha256()
    for environment, config in itertools.product(ENVIRONMENTS, ALL):
        batch = generate(environment, only(config), 20, Split.TRAIN, np.arange(300))
        total.update(batch.action.tobytes() + batch.reward.tobytes() + batch.optimal_action.tobytes())
    return total.hexdigest()


def test_bytes_are_those_of_this_version():
    """Where this fails on purpose, a version in icrl.versions must change with it: stored datasets name them."""
    assert digest() == PINNED


FEWER_LANES = """
import pathlib, sys, types
path = pathlib.Path("icrl/rollout/lanes.py")
lanes = types.ModuleType("icrl.rollout.lanes")
lanes.__file__ = str(path)
sys.modules[lanes.__name__] = lanes
source = path.read_text().replace("LANES = 128", "LANES = 40")
exec(compile(source, path, "exec"), lanes.__dict__)
sys.path.insert(0, "tests/numerics")
import test_arm_rollout
from icrl.rollout import arm_kernels
assert arm_kernels.W == lanes.LANES == 40
print(test_arm_rollout.digest())
"""


def test_bytes_depend_neither_on_the_instruction_set_nor_on_the_number_of_lanes(tmp_path):
    root = Path(__file__).parents[2]
    plain = {
        "NUMBA_CPU_NAME": "generic",
        "NUMBA_CPU_FEATURES": "",
        "NUMBA_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": str(root),
    }
    run = subprocess.run(
        [sys.executable, "-c", FEWER_LANES],
        env=os.environ | plain,
        capture_output=True,
        text=True,
        check=True,
        cwd=root,
    )
    assert run.stdout.split()[-1] == PINNED
