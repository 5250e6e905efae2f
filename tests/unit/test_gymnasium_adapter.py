"""The Gymnasium adapter: its API by Gymnasium's own checker, its numbers by the batched play."""

import itertools
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import icrl.envs
from icrl.config import (
    BernoulliBanditConfig,
    ConfigError,
    GaussianBanditConfig,
    GridWorldConfig,
    LinearBanditConfig,
    TabularMDPConfig,
    to_dict,
)
from icrl.envs.gymnasium_adapter import ID, InteractionEnv
from icrl.streams import Split

LINEAR = tuple(
    LinearBanditConfig(dim=2, n_actions=3, horizon=70, prior=prior, action_set=action_set, noise=noise)
    for prior, action_set, noise in itertools.product(
        ("unit_box", "gaussian", "sphere"), ("fixed", "fresh"), ("gaussian", "bounded", "bernoulli")
    )
)
TABULAR = tuple(
    TabularMDPConfig(
        n_states=4,
        n_actions=3,
        episode_length=5,
        episodes=14,
        stationary=stationary,
        reward=reward,
        reward_noise=noise,
        start=start,
    )
    for stationary, reward, noise, start in itertools.product(
        (True, False), ("dense", "sparse"), ("none", "bernoulli"), ("fixed", "random")
    )
)
EVERY = (
    *LINEAR,
    BernoulliBanditConfig(horizon=1),
    BernoulliBanditConfig(horizon=70),
    GaussianBanditConfig(horizon=70),
    *TABULAR,
    GridWorldConfig(side=3, episode_length=4, episodes=20),
    GridWorldConfig(side=4, episode_length=1, episodes=70, start="random"),
)


def name(environment):
    values = list(to_dict(environment).values())
    return "-".join(str(value) for value in values if isinstance(value, str | bool)) + f"-{environment.horizon}"


@pytest.mark.parametrize("environment", EVERY, ids=name)
def test_gymnasium_finds_nothing_to_complain_about(environment):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make(ID, environment=to_dict(environment))
        check_env(env.unwrapped)
        env.close()


@pytest.mark.parametrize("environment", EVERY, ids=name)
def test_the_same_numbers_as_the_batched_play(environment):
    """Index 5 of eight in lockstep, and alone in Gymnasium, with the same actions."""
    index, mine, T = np.arange(100, 108), 5, environment.horizon
    action = np.random.default_rng(0).integers(0, environment.n_actions, (T, 8))
    batch = icrl.envs.sample(environment, 7, Split.TEST, index)
    play = icrl.envs.interact(environment, batch, 7, Split.TEST)
    env = InteractionEnv(environment, seed=7, split="test")
    seen, info = env.reset(seed=105)
    assert info["index"] == 105
    for t in range(T):
        want = play.observe()
        if isinstance(environment, LinearBanditConfig):
            want = batch.action_set if want is None else want
            np.testing.assert_array_equal(seen, want[mine])
        elif want is not None:
            assert seen == want[mine]
            assert (info["episode"], info["step"]) == divmod(t, environment.episode_length)
        best, gap = play.optimal_action()[mine], play.suboptimality(action[t])[mine]
        reward = play.step(action[t])[mine]
        seen, got, terminated, truncated, info = env.step(action[t, mine])
        assert (got, info["optimal_action"], info["suboptimality"], info["round"]) == (reward, best, gap, t + 1)
        assert (terminated, truncated) == (t == T - 1, False)
    with pytest.raises(ValueError, match="reset"):
        env.step(0)


def test_an_index_is_replayed_and_without_one_the_next_follows():
    env = InteractionEnv(LinearBanditConfig(dim=2, n_actions=3, horizon=9), index=4)

    def rewards():
        return [env.step(t % 3)[1] for t in range(9)]

    first, info = env.reset()
    assert info["index"] == 4
    played = rewards()
    second, info = env.reset()
    assert info["index"] == 5
    assert not np.array_equal(first, second)
    assert rewards() != played
    again, _ = env.reset(options={"index": 4})
    np.testing.assert_array_equal(first, again)
    assert rewards() == played
    assert env.reset(seed=4)[1]["index"] == 4
    assert rewards() == played


def test_what_it_returns_is_the_callers():
    env = InteractionEnv(LinearBanditConfig(dim=2, n_actions=3, horizon=9))
    seen, _ = env.reset()
    kept = seen.copy()
    seen[:] = 0
    np.testing.assert_array_equal(env.step(0)[0], kept)


def test_bad_input():
    with pytest.raises(ConfigError, match=r"environment\.n_actions = 1: expected at least 2"):
        gymnasium.make(ID, environment={"kind": "bernoulli_bandit", "n_actions": 1})
    with pytest.raises(ValueError, match="split = 'dev': expected one of train, validation, test, eval"):
        InteractionEnv(BernoulliBanditConfig(), split="dev")
    with pytest.raises(ValueError, match="render_mode"):
        InteractionEnv(BernoulliBanditConfig(), render_mode="human")
    env = InteractionEnv(BernoulliBanditConfig())
    with pytest.raises(ValueError, match="reset"):
        env.step(0)
    with pytest.raises(ValueError, match="index"):
        env.reset(options={"index": -1})
    env.reset()
    for action in (5, -1, 0.5):
        with pytest.raises(ValueError, match="expected an integer from 0 to 4"):
            env.step(action)
