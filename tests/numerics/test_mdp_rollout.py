"""The compiled rollout of tabular MDPs: against the general loop, its bytes, and UCB-VI's regret."""

import hashlib
import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from icrl import algorithms, envs
from icrl.config import (
    ContextComponent,
    GridWorldConfig,
    OptimalConfig,
    PSRLConfig,
    TabularMDPConfig,
    UCBVIConfig,
    UniformConfig,
)
from icrl.rollout import compiled, components, generate
from icrl.rollout.loop import play
from icrl.streams import Split

STATIONARY = TabularMDPConfig(n_states=6, n_actions=3, episode_length=5, episodes=9)
LAYERED = TabularMDPConfig(
    n_states=4, n_actions=2, episode_length=3, episodes=12, stationary=False, reward_noise="none", start="random"
)
SPARSE = TabularMDPConfig(n_states=5, n_actions=4, episode_length=6, episodes=7, reward="sparse", start="random")
ROOM = GridWorldConfig(side=3, episode_length=5, episodes=11)
ROOMS = GridWorldConfig(side=4, episode_length=7, episodes=5, start="random")
ENVIRONMENTS = {"stationary": STATIONARY, "layered": LAYERED, "sparse": SPARSE, "room": ROOM, "rooms": ROOMS}
ALL = (
    UniformConfig(),
    OptimalConfig(),
    UCBVIConfig(),
    UCBVIConfig(bonus=0.03),
    UCBVIConfig(bonus=0.03, unvisited="ceiling"),
    UCBVIConfig(bonus=0.03, temperature=0.1),
    PSRLConfig(),
)
PINNED = "358c804960cae40e7b8ebf6e7ae1918dc00fa4dcf498c0599e19094727293128"


def only(config):
    return (ContextComponent(config),)


def name(config):
    values = (getattr(config, key, "") for key in ("bonus", "temperature", "unvisited"))
    return "_".join([config.algorithm, *map(str, values)]).rstrip("_")


def same(got, want, rows=slice(None)):
    for key, values in got.arrays().items():
        assert values.tobytes() == want.arrays()[key][rows].tobytes(), key


@pytest.mark.parametrize("environment", ENVIRONMENTS.values(), ids=ENVIRONMENTS)
@pytest.mark.parametrize("config", ALL, ids=name)
def test_the_general_loop_plays_the_same(environment, config):
    assert compiled(environment, config)
    index = np.array([*range(150), 2**33 + 1])
    got = generate(environment, only(config), 2**40 + 3, Split.VALIDATION, index)
    want = play(environment, algorithms.build(config, environment), 2**40 + 3, Split.VALIDATION, index)
    for key in ("state", "action", "reward", "optimal_action"):
        np.testing.assert_array_equal(getattr(got, key), getattr(want, key))
        assert getattr(got, key).dtype == (np.float32 if key == "reward" else np.uint8)
    batch = envs.sample(environment, 2**40 + 3, Split.VALIDATION, index)
    np.testing.assert_array_equal(got.optimal_policy, batch.optimal_policy)
    if getattr(config, "unvisited", "") != "formula":  # that one stays where it starts in Dark Room
        assert len(np.unique(got.state)) > 1


@pytest.mark.parametrize(
    "environment",
    [
        TabularMDPConfig(n_states=1, n_actions=2, episode_length=1, episodes=3),
        TabularMDPConfig(n_states=1, n_actions=3, episode_length=4, episodes=1, stationary=False),
        TabularMDPConfig(n_states=255, n_actions=2, episode_length=2, episodes=2, reward="sparse", start="random"),
        TabularMDPConfig(n_states=2, n_actions=255, episode_length=2, episodes=2),
        GridWorldConfig(side=2, episode_length=1, episodes=130),
    ],
    ids=["one_state_one_step", "one_state", "many_states", "many_actions", "many_episodes"],
)
@pytest.mark.parametrize("config", ALL, ids=name)
def test_extreme_sizes(environment, config):
    got = generate(environment, only(config), 1, Split.TEST, np.arange(3))
    want = play(environment, algorithms.build(config, environment), 1, Split.TEST, np.arange(3))
    for key in ("state", "action", "reward", "optimal_action"):
        np.testing.assert_array_equal(getattr(got, key), getattr(want, key))
    assert got.state.max() < environment.n_states
    assert got.action.max() < environment.n_actions


@pytest.mark.parametrize("environment", [STATIONARY, LAYERED, ROOM], ids=["stationary", "layered", "room"])
@pytest.mark.parametrize("config", ALL, ids=name)
def test_any_partition_and_order_gives_the_same_bytes(environment, config):
    whole = generate(environment, only(config), 9, Split.TRAIN, np.arange(200))
    for low, high in itertools.pairwise([0, 1, 77, 200]):
        same(generate(environment, only(config), 9, Split.TRAIN, np.arange(low, high)), whole, slice(low, high))
    order = np.random.default_rng(0).permutation(200)
    same(generate(environment, only(config), 9, Split.TRAIN, order), whole, order)


@pytest.mark.parametrize("config", [UniformConfig(), OptimalConfig(), PSRLConfig()], ids=name)
def test_more_episodes_continue_the_same_trajectories(config):
    longer = TabularMDPConfig(n_states=6, n_actions=3, episode_length=5, episodes=13)
    short = generate(STATIONARY, only(config), 0, Split.TRAIN, np.arange(50))
    long = generate(longer, only(config), 0, Split.TRAIN, np.arange(50))
    for key in ("state", "action", "reward"):
        np.testing.assert_array_equal(getattr(short, key), getattr(long, key)[:, : STATIONARY.horizon])


def test_mixture():
    context = tuple(ContextComponent(c, w) for c, w in zip(ALL, (1.0, 0.0, 3.0, 0.0, 2.0, 1.0, 4.0), strict=True))
    index = np.arange(300)
    mixed = generate(STATIONARY, context, 0, Split.TRAIN, index)
    np.testing.assert_array_equal(mixed.source, components(context, 0, Split.TRAIN, index))
    assert set(mixed.source) == {0, 2, 4, 5, 6}
    for number in set(mixed.source):
        rows = mixed.source == number
        alone = generate(STATIONARY, only(ALL[number]), 0, Split.TRAIN, index[rows])
        for key in ("state", "action", "reward", "optimal_action", "optimal_policy"):
            np.testing.assert_array_equal(getattr(mixed, key)[rows], getattr(alone, key))


def test_no_indices():
    got = generate(ROOM, only(UCBVIConfig()), 0, Split.TRAIN, np.arange(0))
    assert got.action.shape == got.state.shape == (0, 55)


def digest():
    """SHA-256 over the trajectories of every algorithm in every kind of MDP."""
    total = hashlib.sha256()
    for environment, config in itertools.product(ENVIRONMENTS.values(), ALL):
        for values in generate(environment, only(config), 20, Split.TRAIN, np.arange(100)).arrays().values():
            total.update(values.tobytes())
    return total.hexdigest()


def test_bytes_are_those_of_this_version():
    """Where this fails on purpose, a version in icrl.versions must change with it: stored datasets name them."""
    assert digest() == PINNED


def test_bytes_do_not_depend_on_the_instruction_set(tmp_path):
    root = Path(__file__).parents[2]
    plain = {
        "NUMBA_CPU_NAME": "generic",
        "NUMBA_CPU_FEATURES": "",
        "NUMBA_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": str(root),
    }
    folder = str(Path(__file__).parent)
    code = f"import sys; sys.path.insert(0, {folder!r}); import test_mdp_rollout as t; print(t.digest())"
    run = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | plain, capture_output=True, text=True, check=True, cwd=root
    )
    assert run.stdout.split()[-1] == PINNED


def regret(environment, config, count):
    """Mean cumulative regret float64[K] over the episodes, from suboptimality V* - Q* of what was played."""
    index = np.arange(count)
    got = generate(environment, only(config), 0, Split.EVAL, index)
    step = np.arange(environment.horizon) % environment.episode_length
    values = envs.sample(environment, 0, Split.EVAL, index).optimal_values[index[:, None], step, got.state]
    gap = values.max(axis=-1) - np.take_along_axis(values, got.action[..., None].astype(np.int64), axis=-1)[..., 0]
    return gap.reshape(count, environment.episodes, -1).sum(axis=2).mean(axis=0).cumsum()


@pytest.mark.parametrize(("bonus", "unvisited"), [(0.15, "formula"), (0.05, "ceiling")])
def test_ucb_vi_s_regret_grows_no_faster_than_the_root_of_the_episodes(bonus, unvisited):
    """The slope of log regret over log K, doubling K: at most 1/2 with enough bonus, 1 without any (it gets stuck)."""
    environment = TabularMDPConfig(n_states=3, n_actions=2, episode_length=3, episodes=2000)
    optimistic = regret(environment, UCBVIConfig(bonus=bonus, unvisited=unvisited), 60)
    greedy = regret(environment, UCBVIConfig(bonus=0.0), 60)
    slopes = {name: np.log2(total[1999] / total[999]) for name, total in (("ucb", optimistic), ("greedy", greedy))}
    assert slopes["ucb"] < 0.5
    assert slopes["greedy"] > 0.95
    per_episode = np.diff(optimistic, prepend=0.0)
    assert per_episode[-500:].mean() < 0.15 * per_episode[:500].mean()
    assert optimistic[-1] < greedy[-1] / 3


def test_a_small_bonus_needs_the_ceiling():
    """In 100 episodes of a small MDP the formula's Q of unseen pairs hardly explores; H does."""
    environment = TabularMDPConfig(n_states=3, n_actions=3, episode_length=4, episodes=100)
    formula, ceiling = (regret(environment, UCBVIConfig(bonus=0.01, unvisited=u), 200) for u in ("formula", "ceiling"))
    assert ceiling[-1] - ceiling[-11] < 0.25 * (formula[-1] - formula[-11])
