"""How regret grows with the horizon, against what theorems say of each algorithm.

n environments of the prior; the regret is free of noise, so that its mean is the Bayesian regret.
"""

import functools

import numpy as np
import pytest

from icrl import envs
from icrl.config import (
    BernoulliBanditConfig,
    ContextComponent,
    EmpiricalMeanConfig,
    GaussianBanditConfig,
    LinearBanditConfig,
    LinUCBConfig,
    ThompsonConfig,
    UCBConfig,
    UniformConfig,
)
from icrl.rollout import generate
from icrl.streams import Split

T = 3200
BERNOULLI = BernoulliBanditConfig(n_actions=5, horizon=T)
GAUSSIAN = GaussianBanditConfig(n_actions=5, horizon=T)
LINEAR = LinearBanditConfig(dim=5, n_actions=10, horizon=T, noise_std=1.5)
KINDS = pytest.mark.parametrize("environment", [BERNOULLI, GAUSSIAN, LINEAR], ids=lambda e: e.kind)
ARMS = pytest.mark.parametrize("environment", [BERNOULLI, GAUSSIAN], ids=lambda e: e.kind)
UCB1 = UCBConfig(index="ucb1")


@functools.cache
def regret(environment, config, n=768):
    """float64[n, T]: cumulative."""
    parts = []
    for first in range(0, n, 256):
        index = np.arange(first, first + 256)
        means = envs.sample(environment, 0, Split.EVAL, index).means
        played = generate(environment, (ContextComponent(config),), 0, Split.EVAL, index).action
        gap = means.max(axis=1, keepdims=True).astype(np.float64) - np.take_along_axis(means, played, axis=1)
        parts.append(np.cumsum(gap, axis=1))
    return np.concatenate(parts)


def surplus(curves, factor, t=T // 2):
    """R(2 t) - factor R(t) in its standard errors: below 0 where a doubled horizon costs less than `factor`."""
    difference = curves[:, 2 * t - 1] - factor * curves[:, t - 1]
    return difference.mean() / (difference.std(ddof=1) / np.sqrt(len(difference)))


@KINDS
def test_uniform_play_is_linear(environment):
    assert abs(surplus(regret(environment, UniformConfig()), 2)) < 4


@ARMS
@pytest.mark.parametrize("config", [UCB1, ThompsonConfig()], ids=lambda c: c.algorithm)
def test_ucb1_and_thompson_sampling_grow_like_a_power_of_the_logarithm(environment, config):
    """Far slower than sqrt(T), and ever more so; log(T)^2, the law of Bayesian regret, gives 1.19 where T doubles."""
    curves = regret(environment, config)
    assert surplus(curves, 2**0.5) < -4
    early, late = (curves[:, 2 * t - 1].mean() / curves[:, t - 1].mean() for t in (200, T // 2))
    assert 1 < late < early


@ARMS
def test_greed_is_linear_in_the_end(environment):
    """Without exploration a share of the environments is never solved: the tests above can fail."""
    assert surplus(regret(environment, EmpiricalMeanConfig()), 1.8) > 4


@ARMS
def test_thompson_sampling_within_its_information_theoretic_bound(environment):
    """Russo and Van Roy (2016): Bayesian regret <= s sqrt(2 A T H(a*)), rewards s-sub-Gaussian, under its own prior."""
    s = 0.5 if environment is BERNOULLI else environment.noise_std
    A, t = environment.n_actions, np.arange(1, T + 1)
    bound = s * np.sqrt(2 * A * t * np.log(A))
    curves = regret(environment, ThompsonConfig())
    error = curves.std(axis=0, ddof=1) / np.sqrt(len(curves))
    assert np.all(curves.mean(axis=0) + 4 * error < bound)
    assert regret(environment, EmpiricalMeanConfig()).mean(axis=0)[-1] > bound[-1]


def test_ucb1_within_its_finite_time_bound():
    """Auer et al. (2002), Thm 1, for each environment: E N_a(n) <= 8 log n / gap_a^2 + 1 + pi^2 / 3."""
    index = np.arange(768)
    means = envs.sample(BERNOULLI, 0, Split.EVAL, index).means.astype(np.float64)
    gap = means.max(axis=1, keepdims=True) - means
    action = generate(BERNOULLI, (ContextComponent(UCB1),), 0, Split.EVAL, index).action
    for n in (50, 400, T):
        plays = np.stack([(action[:, :n] == a).sum(axis=1) for a in range(5)], axis=1)
        bound = 8 * np.log(n) / np.maximum(gap, 1e-9) ** 2 + 1 + np.pi**2 / 3
        tight = (gap > 0) & (bound < n)
        if n == T:
            assert tight.sum() > 1000
        assert plays[tight].sum() < bound[tight].sum()


def test_linucb_within_its_bound():
    """Abbasi-Yadkori et al. (2011), Thm 3, with the width that it asks for: R(t) <= its bound at all t, but for a
    share delta of the runs. Its growth is that of sqrt(T log T) or less.
    """
    d, ridge, delta = LINEAR.dim, 1.0, 0.01
    length, size = d**0.5, d**0.5  # of an action and of w*, at most
    t = np.arange(1, T + 1)
    log_det = d * np.log(1 + t * length**2 / (ridge * d))
    width = LINEAR.noise_std * np.sqrt(2 * np.log(1 / delta) + log_det) + ridge**0.5 * size
    curves = regret(LINEAR, LinUCBConfig(ridge=ridge, confidence=float(width[-1])), 256)
    # a round's regret is at most 2 d < 2 width, in place of the theorem's 2
    assert d < width[-1]
    bound = 2 * width[-1] * np.sqrt(2 * t * log_det)
    assert np.mean((curves > bound).any(axis=1)) <= delta
    assert surplus(curves, 2**0.5 * np.sqrt(log_det[-1] / log_det[T // 2 - 1])) < 0
    assert surplus(curves, 1.1) > 4


def test_a_width_that_never_grows_is_linear_in_the_end():
    """The index of the paper's figures has no logarithm: it beats UCB1 at T = 200, and is worse in the end."""
    for environment, factor in ((BERNOULLI, 2**0.5), (GAUSSIAN, 1.7)):
        assert surplus(regret(environment, UCBConfig()), factor) > 0
    ours, ucb1 = (regret(BERNOULLI, config)[:, 199].mean() for config in (UCBConfig(), UCB1))
    assert ours < 0.3 * ucb1
