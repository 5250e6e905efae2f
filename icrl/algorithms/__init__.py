"""Algorithms: batched policies over interactions that run in lockstep, in float64 NumPy.

They know environments and draw no random numbers of their own; rollouts hand them both.
"""

from __future__ import annotations

from typing import assert_never

from icrl.algorithms.base import Algorithm, Draws, StreamDraws, choose, largest, one_hot
from icrl.algorithms.beta_thompson import BetaThompson
from icrl.algorithms.empirical_mean import EmpiricalMean
from icrl.algorithms.epsilon_greedy import EpsilonGreedy
from icrl.algorithms.gaussian_thompson import GaussianThompson
from icrl.algorithms.linucb import LinUCB
from icrl.algorithms.mixture import Mixture
from icrl.algorithms.optimal import Optimal
from icrl.algorithms.psrl import PSRL
from icrl.algorithms.thompson import Thompson, noise_variance
from icrl.algorithms.ucb import UCB
from icrl.algorithms.ucb_vi import UCBVI, bonuses
from icrl.algorithms.uniform import Uniform
from icrl.config import (
    AlgorithmConfig,
    BernoulliBanditConfig,
    EmpiricalMeanConfig,
    EnvironmentConfig,
    EpsilonGreedyConfig,
    GaussianBanditConfig,
    LinUCBConfig,
    MixtureConfig,
    OptimalConfig,
    PSRLConfig,
    ThompsonConfig,
    UCBConfig,
    UCBVIConfig,
    UniformConfig,
    algorithm_misfits,
)

__all__ = [
    "PSRL",
    "UCB",
    "UCBVI",
    "Algorithm",
    "BetaThompson",
    "Draws",
    "EmpiricalMean",
    "EpsilonGreedy",
    "GaussianThompson",
    "LinUCB",
    "Mixture",
    "Optimal",
    "StreamDraws",
    "Thompson",
    "Uniform",
    "bonuses",
    "build",
    "choose",
    "largest",
    "noise_variance",
    "one_hot",
]


def build(config: AlgorithmConfig, environment: EnvironmentConfig) -> Algorithm:
    """The algorithm that a config names; raises ValueError where it makes no sense in the environment."""
    for problem in algorithm_misfits(config.algorithm, config, environment):
        raise ValueError(str(problem))
    match config:
        case UniformConfig():
            return Uniform(config)
        case OptimalConfig():
            return Optimal(config)
        case EmpiricalMeanConfig():
            return EmpiricalMean(config)
        case EpsilonGreedyConfig():
            return EpsilonGreedy(config)
        case UCBConfig():
            return UCB(config)
        case LinUCBConfig():
            return LinUCB(config)
        case ThompsonConfig():
            if isinstance(environment, BernoulliBanditConfig):
                return BetaThompson(config, environment)
            if isinstance(environment, GaussianBanditConfig):
                return GaussianThompson(config, environment)
            return Thompson(config, environment)
        case MixtureConfig():
            return Mixture(config, [build(component.algorithm, environment) for component in config.components])
        case UCBVIConfig():
            return UCBVI(config, environment)
        case PSRLConfig():
            return PSRL(config, environment)
        case _:
            assert_never(config)
