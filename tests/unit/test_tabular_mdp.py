"""Tabular MDPs and Dark Room: the prior, optimal values by brute force, and what a play draws where."""

import itertools

import numpy as np
import pytest
from scipy import stats

from icrl import envs, streams
from icrl.config import GridWorldConfig, TabularMDPConfig
from icrl.envs import mdp_kernels
from icrl.envs.tabular_mdp import grid_moves
from icrl.streams import Split, Stream

SMALL = TabularMDPConfig(n_states=4, n_actions=3, episode_length=5, episodes=3)
LAYERED = TabularMDPConfig(n_states=3, n_actions=2, episode_length=3, episodes=40, stationary=False, start="random")
ROOM = GridWorldConfig(side=4, episode_length=9, episodes=5)


def policy_values(batch, row, policy):
    """V_0 float64[S] of a policy [H, S], step by step from the last, with dense matrices."""
    H, S = policy.shape
    L = batch.rewards.shape[1]
    transitions, rewards = batch.transitions[row], batch.rewards[row].astype(np.float64)
    value = np.zeros(S)
    for h in range(H - 1, -1, -1):
        layer, states = min(h, L - 1), np.arange(S)
        value = rewards[layer, states, policy[h]] + transitions[layer, states, policy[h]] @ value
    return value


def test_rows_are_dirichlet_and_rewards_uniform():
    environment = TabularMDPConfig(n_states=6, n_actions=2, episode_length=2, stationary=False)
    batch = envs.sample(environment, 0, Split.TRAIN, np.arange(400))
    p = batch.transitions
    assert p.shape == (400, 2, 6, 2, 6)
    assert batch.weights.dtype == batch.rewards.dtype == np.float32
    np.testing.assert_allclose(p.sum(axis=-1), 1, rtol=1e-12)
    for state in range(6):  # a coordinate of Dirichlet(1) is Beta(1, S - 1)
        assert stats.kstest(p[..., state].ravel(), stats.beta(1, 5).cdf).pvalue > 0.005
    rows = p.reshape(-1, 6)
    covariance = np.cov(rows.T) * (36 * 7)  # diagonal S - 1, else -1, over S^2 (S + 1)
    assert np.abs(covariance - (6 * np.eye(6) - 1)).max() < 0.3  # their standard errors are below 0.1
    assert stats.kstest(batch.rewards.ravel(), "uniform").pvalue > 0.01
    pairs = p[:, :, :, :, 0].reshape(400, -1)  # rows of one environment are independent, and so are its steps
    assert np.abs(np.corrcoef(pairs.T) - np.eye(24)).max() < 4.5 / np.sqrt(400)


def test_sparse_rewards_have_one_goal_uniform_over_the_states():
    environment = TabularMDPConfig(n_states=5, n_actions=2, episode_length=2, reward="sparse", stationary=False)
    rewards = envs.sample(environment, 0, Split.TRAIN, np.arange(2000)).rewards
    assert set(np.unique(rewards)) == {0, 1}
    np.testing.assert_array_equal(rewards, np.broadcast_to(rewards[:, :1, :, :1], rewards.shape))
    np.testing.assert_array_equal(rewards[:, 0, :, 0].sum(axis=1), 1)
    assert stats.chisquare(rewards[:, 0, :, 0].sum(axis=0)).pvalue > 0.01


def test_an_environment_is_a_function_of_its_index():
    for environment in (SMALL, LAYERED, ROOM):
        whole = envs.sample(environment, 7, Split.EVAL, np.arange(40))
        part = envs.sample(environment, 7, Split.EVAL, np.array([31, 4]))
        for name in ("index", "weights", "rewards", "optimal_values", "optimal_policy"):
            np.testing.assert_array_equal(getattr(whole, name)[[31, 4]], getattr(part, name))
        other = envs.sample(environment, 8, Split.EVAL, np.arange(40))
        assert not np.array_equal(whole.rewards, other.rewards)


@pytest.mark.parametrize(
    "environment",
    [
        TabularMDPConfig(n_states=2, n_actions=2, episode_length=4),
        TabularMDPConfig(n_states=2, n_actions=3, episode_length=3, stationary=False),
        TabularMDPConfig(n_states=3, n_actions=2, episode_length=3, reward="sparse"),
        TabularMDPConfig(n_states=4, n_actions=5, episode_length=1),
    ],
    ids=["stationary", "layered", "sparse", "one_step"],
)
def test_optimal_values_against_every_policy(environment):
    """All A^(S H) deterministic policies, each evaluated with dense matrices."""
    batch = envs.sample(environment, 3, Split.TEST, np.arange(5))
    H, S, A = environment.episode_length, environment.n_states, environment.n_actions
    for row in range(5):
        every = itertools.product(range(A), repeat=H * S)
        best = np.max([policy_values(batch, row, np.reshape(policy, (H, S))) for policy in every], axis=0)
        np.testing.assert_allclose(batch.optimal_values[row, 0].max(axis=1), best, rtol=1e-12)
        np.testing.assert_allclose(policy_values(batch, row, batch.optimal_policy[row].astype(int)), best, rtol=1e-12)
    np.testing.assert_array_equal(batch.optimal_policy, batch.optimal_values.argmax(axis=-1))


def test_grid_moves_and_walls():
    batch = envs.sample(ROOM, 0, Split.TRAIN, np.arange(64))
    moves = grid_moves(ROOM)
    assert moves[0].tolist() == [0, 0, 4, 0, 1]  # the corner above and left: stay, up, down, left, right
    assert moves[15].tolist() == [15, 11, 15, 14, 15]
    assert moves[6].tolist() == [6, 2, 10, 5, 7]
    np.testing.assert_array_equal(batch.transitions[3, 0].argmax(axis=-1), moves)
    np.testing.assert_array_equal(batch.transitions[3, 0].max(axis=-1), 1)
    goal = batch.rewards[:, 0, :, 0].argmax(axis=1)
    assert len(set(goal)) > 8
    row, column = np.divmod(np.arange(16), 4)
    for b in range(64):  # every step in the goal pays 1; the way there is as long as the moves between
        distance = abs(row - goal[b] // 4) + abs(column - goal[b] % 4)
        np.testing.assert_array_equal(batch.optimal_values[b, 0].max(axis=1), ROOM.episode_length - distance)
        dense = policy_values(batch, b, batch.optimal_policy[b].astype(int))
        np.testing.assert_array_equal(dense, ROOM.episode_length - distance)


@pytest.mark.parametrize("environment", [SMALL, LAYERED, ROOM], ids=["small", "layered", "room"])
def test_a_play_draws_states_and_rewards_where_it_says(environment):
    index = np.array([5, 2**33 + 1, 0])
    batch = envs.sample(environment, 11, Split.TEST, index)
    interaction = envs.interact(environment, batch, 11, Split.TEST)
    T, H, S = environment.horizon, environment.episode_length, environment.n_states
    fate = streams.uniforms(11, Split.TEST, Stream.TRANSITION, index, T).astype(np.float64)
    noise = streams.uniforms(11, Split.TEST, Stream.REWARD, index, T)
    action = np.random.default_rng(0).integers(0, environment.n_actions, (T, 3))
    L = batch.rewards.shape[1]
    state = np.zeros(3, np.int64)
    for t in range(T):
        h = t % H
        for b in range(3):
            if h == 0:
                fixed = 10 if environment is ROOM else 0  # row 2, column 2 of the 4 x 4 rooms
                state[b] = fixed if environment.start == "fixed" else int(fate[b, t] * S)
            else:  # the law of step h - 1 leads to the state of step h
                law = batch.transitions[b, min(h - 1, L - 1), state[b], action[t - 1, b]]
                state[b] = np.searchsorted(np.cumsum(law), fate[b, t], side="right")
        np.testing.assert_array_equal(interaction.observe(), state)
        values = batch.optimal_values[np.arange(3), h, state]
        np.testing.assert_array_equal(interaction.optimal_action(), values.argmax(axis=1))
        gap = values.max(axis=1) - values[np.arange(3), action[t]]
        np.testing.assert_array_equal(interaction.suboptimality(action[t]), gap.astype(np.float32))
        mean = batch.rewards[np.arange(3), min(h, L - 1), state, action[t]]
        want = mean if environment is ROOM else (noise[:, t] < mean).astype(np.float32)
        np.testing.assert_array_equal(interaction.step(action[t]), want)


@pytest.mark.parametrize(("side", "middle"), [(2, 3), (3, 4), (4, 10), (5, 12), (10, 55)])
def test_dark_room_starts_in_its_middle(side, middle):
    environment = GridWorldConfig(side=side, episode_length=2, episodes=1)
    batch = envs.sample(environment, 0, Split.TEST, np.arange(3))
    np.testing.assert_array_equal(envs.interact(environment, batch, 0, Split.TEST).observe(), middle)


def test_rewards_without_noise_are_their_means():
    environment = TabularMDPConfig(n_states=3, n_actions=2, episode_length=2, episodes=2, reward_noise="none")
    batch = envs.sample(environment, 0, Split.TEST, np.arange(4))
    interaction = envs.interact(environment, batch, 0, Split.TEST)
    np.testing.assert_array_equal(interaction.step(np.array([0, 1, 0, 1])), batch.rewards[range(4), 0, 0, [0, 1, 0, 1]])


def test_random_starts_are_uniform_and_transitions_follow_their_law():
    n = 4000
    batch = envs.sample(LAYERED, 0, Split.TRAIN, np.arange(n))
    interaction = envs.interact(LAYERED, batch, 0, Split.TRAIN)
    start = interaction.observe()
    assert stats.chisquare(np.bincount(start, minlength=3)).pvalue > 0.01
    interaction.step(np.ones(n, np.int64))
    law = batch.transitions[np.arange(n), 0, start, 1]
    surplus = (np.eye(3)[interaction.observe()] - law).sum(axis=0)
    assert np.all(np.abs(surplus) < 4 * np.sqrt((law * (1 - law)).sum(axis=0)))


def test_suboptimality_adds_up_to_the_regret_of_a_policy():
    """Performance difference: E sum_h V*_h(s_h) - Q*_h(s_h, a_h) = V*_1(s_1) - E sum_h r_h."""
    n = 1500
    batch = envs.sample(SMALL, 1, Split.EVAL, np.arange(n))
    interaction = envs.interact(SMALL, batch, 1, Split.EVAL)
    rng = np.random.default_rng(2)
    gap, won = np.zeros(n), np.zeros(n)
    for _ in range(SMALL.horizon):
        action = rng.integers(0, 3, n)
        gap += interaction.suboptimality(action)
        won += interaction.step(action)
    lost = SMALL.episodes * batch.optimal_values[:, 0, 0].max(axis=1) - won
    assert gap.min() >= 0
    assert abs((gap - lost).mean()) < 4 * (gap - lost).std() / np.sqrt(n)
    assert gap.mean() > 1


def test_no_transition_weight_is_zero():
    """Else the only transition of an MDP with one state would be 0 / 0, once in 2**24 pairs."""
    u = np.array([0, 0.5, 1 - 2**-24], np.float32)
    weights = np.empty(3, np.float32)
    mdp_kernels.draw_transitions(u, weights)
    assert weights[2] == np.float32(2**-25)
    np.testing.assert_allclose(weights[:2], -np.log(u[:2] + 2**-24), rtol=1e-6)
    one = TabularMDPConfig(n_states=1, n_actions=3, episode_length=2, episodes=2)
    batch = envs.sample(one, 0, Split.TRAIN, np.arange(20))
    np.testing.assert_array_equal(batch.optimal_values[:, 1], batch.rewards[:, 0])
    np.testing.assert_array_equal(batch.transitions, 1)
