"""Algorithms of tabular MDPs: UCB-VI against its definition with dense arrays and rlberry-scool; the optimum."""

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from icrl import algorithms, envs
from icrl.algorithms import UCBVI, bonuses, softmax
from icrl.config import GridWorldConfig, OptimalConfig, TabularMDPConfig, UCBVIConfig, UniformConfig
from icrl.rollout.loop import play
from icrl.streams import Split
from tests.fixed_draws import FixedDraws

RECORDED = Path(__file__).parents[1] / "oracles" / "rlberry_ucbvi.npz"
SMALL = TabularMDPConfig(n_states=4, n_actions=3, episode_length=5, episodes=12)
LAYERED = TabularMDPConfig(n_states=3, n_actions=2, episode_length=3, episodes=20, stationary=False, start="random")
EXACT = TabularMDPConfig(n_states=3, n_actions=3, episode_length=4, episodes=15, reward_noise="none")
ROOM = GridWorldConfig(side=3, episode_length=4, episodes=10)


def dense_tables(config, environment, state, action, reward):
    """Q float64[H, S, A] by the paper's definition, from K' whole episodes [K', H] of one interaction."""
    H, S, A, T = environment.episode_length, environment.n_states, environment.n_actions, environment.horizon
    visits, gained, followed = np.zeros((H, S, A)), np.zeros((H, S, A)), np.zeros((H, S, A, S))
    for k in range(len(state)):
        for h in range(H):
            visits[h, state[k, h], action[k, h]] += 1
            gained[h, state[k, h], action[k, h]] += reward[k, h]
            if h < H - 1:
                followed[h, state[k, h], action[k, h], state[k, h + 1]] += 1
    at_least_one = np.maximum(visits, 1)
    bonus = config.bonus * 2 * H * np.sqrt(np.log(S * A * T * (environment.episodes * H)) / at_least_one)
    if config.unvisited == "ceiling":
        bonus[visits == 0] = H
    values, following = np.empty((H, S, A)), np.zeros(S)
    for h in range(H - 1, -1, -1):
        values[h] = np.minimum(
            H, gained[h] / at_least_one[h] + bonus[h] + followed[h] / at_least_one[h][..., None] @ following
        )
        following = values[h].max(axis=1)
    return values


@pytest.mark.parametrize("environment", [SMALL, LAYERED, EXACT, ROOM], ids=["small", "layered", "exact", "room"])
@pytest.mark.parametrize(
    "config", [UCBVIConfig(), UCBVIConfig(bonus=0.03), UCBVIConfig(bonus=0.0)], ids=lambda c: c.bonus
)
@pytest.mark.parametrize(("temperature", "unvisited"), [(0.0, "formula"), (0.4, "formula"), (0.0, "ceiling")])
def test_ucb_vi_is_its_definition_along_a_random_log(environment, config, temperature, unvisited):
    config = UCBVIConfig(bonus=config.bonus, temperature=temperature, unvisited=unvisited)
    rng, B, H = np.random.default_rng(0), 3, environment.episode_length
    batch = envs.sample(environment, 0, Split.TEST, np.arange(B))
    interaction = envs.interact(environment, batch, 0, Split.TEST)
    algorithm = UCBVI(config, environment)
    algorithm.reset(batch)
    K = environment.episodes
    state, action, reward = np.empty((B, K, H), int), np.empty((B, K, H), int), np.empty((B, K, H), np.float32)
    informed = 0
    for k in range(K):
        tables = np.array(
            [dense_tables(config, environment, state[b, :k], action[b, :k], reward[b, :k]) for b in range(B)]
        )
        informed += np.any(tables != tables[0, 0, 0, 0])
        for h in range(H):
            state[:, k, h] = interaction.observe()
            algorithm.observe(interaction.observe())
            np.testing.assert_allclose(algorithm.values, tables, rtol=1e-13, atol=1e-13)
            q = algorithm.values[np.arange(B), h, state[:, k, h]]
            p = algorithm.probabilities()
            if temperature:
                weight = np.exp(q / temperature)
                np.testing.assert_allclose(p, weight / weight.sum(axis=1, keepdims=True), rtol=1e-12)
            else:
                np.testing.assert_array_equal(p, np.eye(environment.n_actions)[q.argmax(axis=1)])
            action[:, k, h] = rng.integers(0, environment.n_actions, B)
            reward[:, k, h] = interaction.step(action[:, k, h])
            algorithm.update(action[:, k, h], reward[:, k, h])
    assert informed > K // 2 or config.bonus == 1  # the paper's bonus keeps every table at H here


@pytest.mark.parametrize("case", ["small_bonus", "middle_bonus", "paper_bonus"])
def test_ucb_vi_tables_against_rlberry(case):
    """rlberry-scool's own tables on a replayed log (recorded by tests/oracles/rlberry_ucbvi.py)."""
    with np.load(RECORDED) as recorded:
        got = {name.split("/")[1]: recorded[name] for name in recorded if name.startswith(case)}
    S, A, H, K = got["sizes"][:4].astype(int).tolist()
    environment = TabularMDPConfig(n_states=S, n_actions=A, episode_length=H, episodes=K, stationary=False)
    algorithm = UCBVI(UCBVIConfig(bonus=float(got["sizes"][4])), environment)
    algorithm.reset(envs.sample(environment, 0, Split.TEST, np.arange(1)))
    tables = dict(zip(got["episode"].tolist(), got["q"], strict=True))
    compared = 0
    for k in range(K):
        for h in range(H):
            algorithm.observe(got["state"][k, h : h + 1].astype(np.int64))
            if h == 0 and k in tables:
                np.testing.assert_allclose(algorithm.values[0], np.minimum(tables[k], H), rtol=1e-12, atol=1e-12)
                compared += np.count_nonzero(algorithm.values[0] < H)
            algorithm.update(
                got["action"][k, h : h + 1].astype(np.int64), got["reward"][k, h : h + 1].astype(np.float32)
            )
    assert compared > 100


def test_bonus_is_the_paper_s():
    T = SMALL.horizon
    for n, width in enumerate(bonuses(UCBVIConfig(bonus=0.25), SMALL)):
        want = 0.25 * 2 * 5 * math.sqrt(math.log(4 * 3 * T / (1 / T)) / max(n, 1))
        assert width == pytest.approx(want, rel=1e-15)
    assert n == 12


def test_with_the_paper_s_bonus_nothing_is_learnt_for_long():
    """Q = H until a pair has 4 log(S A T / delta) visits: soft UCB-VI is uniform and hard plays the lowest action."""
    environment = TabularMDPConfig(n_states=5, n_actions=3, episode_length=4, episodes=60)
    threshold = 4 * math.log(5 * 3 * environment.horizon**2)
    assert 40 < threshold < 60
    for temperature in (0.0, 1e-3):
        algorithm = UCBVI(UCBVIConfig(temperature=temperature), environment)
        played = play(environment, algorithm, 0, Split.EVAL, np.arange(30))
        step, pair = algorithm._counts[:, 0], algorithm.values[:, 0]
        assert np.all(algorithm.values[algorithm._counts < threshold] == 4)
        assert step.sum() == 30 * 60
        assert pair.max() == 4
        if temperature == 0:
            assert not played.action[:, : 4 * int(threshold)].any()
        else:
            assert stats.chisquare(np.bincount(played.action.ravel(), minlength=3)).pvalue > 0.01


def test_soft_ucb_vi_samples_its_probabilities():
    n = 4000
    batch = envs.sample(SMALL, 0, Split.TEST, np.zeros(n, np.int64))
    algorithm = UCBVI(UCBVIConfig(bonus=0.02, temperature=3.0), SMALL)
    algorithm.reset(batch)
    rng = np.random.default_rng(3)
    for _ in range(40):
        algorithm.observe(np.full(n, rng.integers(4)))
        algorithm.update(np.full(n, rng.integers(3)), np.full(n, rng.integers(2), np.float32))
    algorithm.observe(np.full(n, 1))
    p = algorithm.probabilities()[0]
    assert p.min() > 0.01
    assert p.max() > 0.4
    uniform = (np.arange(n) / n).astype(np.float32)
    frequency = np.bincount(algorithm.act(FixedDraws(uniform)), minlength=3) / n
    np.testing.assert_allclose(frequency, p, atol=2 / n)  # one point of an even grid in each of n cells


def test_optimal_plays_the_optimal_policy_of_step_and_state():
    for environment in (SMALL, LAYERED, ROOM):
        algorithm = algorithms.build(OptimalConfig(), environment)
        played = play(environment, algorithm, 0, Split.EVAL, np.arange(50))
        assert not played.suboptimality.any()
        np.testing.assert_array_equal(played.action, played.optimal_action)
        assert len(set(played.action.ravel())) > 1
        batch = envs.sample(environment, 0, Split.EVAL, np.arange(50))
        start = batch.optimal_values[np.arange(50)[:, None], 0, played.state[:, :: environment.episode_length]].max(
            axis=2
        )
        surplus = played.reward.sum(axis=1) - start.sum(axis=1)
        assert abs(surplus.mean()) <= 4 * surplus.std() / np.sqrt(50)
    algorithm.observe(np.zeros(50, np.int64))
    np.testing.assert_array_equal(algorithm.probabilities().argmax(axis=1), batch.optimal_policy[:, 0, 0])


def test_uniform_in_an_mdp():
    played = play(SMALL, algorithms.build(UniformConfig(), SMALL), 0, Split.EVAL, np.arange(200))
    assert stats.chisquare(np.bincount(played.action.ravel(), minlength=3)).pvalue > 0.01


def test_float64_exponential():
    x = -np.concatenate([np.linspace(0, 1, 5001), np.logspace(-18, np.log10(707), 5001), [0.0]])
    rows = np.stack([np.zeros_like(x), x], axis=1)
    got = softmax.weights_of(rows, 1.0)
    np.testing.assert_array_equal(got[:, 0], 1)
    np.testing.assert_allclose(got[:, 1], np.exp(x), rtol=4e-16)
    np.testing.assert_allclose(softmax.weights_of(rows[:1] - [[0, 1e6]], 1.0), [[1, math.exp(-708)]], rtol=4e-16)
    np.testing.assert_allclose(softmax.weights_of(np.array([[3.0, 5.0]]), 0.5), [[math.exp(-4), 1]], rtol=4e-16)


def test_pick_is_choose():
    rng = np.random.default_rng(1)
    weights = rng.uniform(size=(2000, 5)) * (rng.uniform(size=(2000, 5)) < 0.7)
    weights[:, 2] += 0.1
    u = np.concatenate([[0, 1 - 2**-24], rng.uniform(size=1998)]).astype(np.float32)
    picked = [softmax.pick(w, x) for w, x in zip(weights, u, strict=True)]
    np.testing.assert_array_equal(picked, algorithms.choose(weights, u))
