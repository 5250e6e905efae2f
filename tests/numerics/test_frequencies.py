"""What algorithms play against the probabilities they give: a million draws, exact binomial bounds."""

import numpy as np
import pytest
from scipy import stats

from icrl import algorithms, envs
from icrl.config import (
    BernoulliBanditConfig,
    EpsilonGreedyConfig,
    GaussianBanditConfig,
    LinearBanditConfig,
    LinUCBConfig,
    MixtureComponent,
    MixtureConfig,
    ThompsonConfig,
    UCBConfig,
    UniformConfig,
)
from icrl.streams import Split

COPIES, ROUNDS = 20_000, 50
N = COPIES * ROUNDS
BERNOULLI = BernoulliBanditConfig(n_actions=5)
LINEAR = LinearBanditConfig(dim=3, n_actions=6)
MIXED = MixtureConfig(
    components=(
        MixtureComponent(ThompsonConfig(), 1.0),
        MixtureComponent(EpsilonGreedyConfig(epsilon=0.4), 2.0),
        MixtureComponent(UCBConfig(), 0.5),
        MixtureComponent(UniformConfig(), 0.1),
    )
)
CASES = [
    (ThompsonConfig(), BERNOULLI, 0),
    (ThompsonConfig(), BERNOULLI, 30),
    (ThompsonConfig(), BernoulliBanditConfig(n_actions=5, horizon=400), 400),
    (ThompsonConfig(), GaussianBanditConfig(n_actions=5), 12),
    (ThompsonConfig(noise_variance=0.3, prior_variance=4.0), GaussianBanditConfig(n_actions=3), 4),
    (EpsilonGreedyConfig(epsilon=0.1), BERNOULLI, 3),
    (EpsilonGreedyConfig(epsilon=0.9), GaussianBanditConfig(n_actions=7), 30),
    (LinUCBConfig(temperature=0.3), LINEAR, 10),
    (LinUCBConfig(temperature=2.0, confidence=0.5), LINEAR, 40),
    (MIXED, BERNOULLI, 20),
    (UniformConfig(), BernoulliBanditConfig(n_actions=7), 0),
]
ALPHA = 1e-3
"""Chance that a right algorithm fails one case."""


@pytest.mark.parametrize(("config", "environment", "rounds"), CASES, ids=lambda value: getattr(value, "kind", None))
def test_a_million_actions(config, environment, rounds):
    """One history, the same in all copies; each action's count lies between quantiles of its binomial law."""
    batch = envs.sample(environment, 3, Split.TEST, np.full(COPIES, 11))
    algorithm = algorithms.build(config, environment)
    algorithm.reset(batch)
    rng = np.random.default_rng(rounds)
    for action in rng.integers(0, environment.n_actions, rounds):
        reward = float(rng.random() < 0.5 + 0.1 * (action - 2))
        algorithm.update(np.full(COPIES, action), np.full(COPIES, reward, np.float32))
    every = algorithm.probabilities()
    p = every[0]
    np.testing.assert_array_equal(every, np.tile(p, (COPIES, 1)))
    draws = algorithms.StreamDraws(0, Split.TEST, np.arange(COPIES))
    count = np.zeros(environment.n_actions, np.int64)
    for draws.round in range(ROUNDS):
        count += np.bincount(algorithm.act(draws), minlength=environment.n_actions)
    assert count.sum() == N
    tail = ALPHA / 2 / environment.n_actions
    assert np.all(stats.binom.cdf(count, N, p) >= tail), (count / N, p)
    assert np.all(stats.binom.sf(count - 1, N, p) >= tail), (count / N, p)
