"""Algorithms: batched policies over interactions that run in lockstep, in float64 NumPy.

They know environments and draw no random numbers of their own; rollouts hand them both.
"""

from __future__ import annotations

from icrl.algorithms.base import Algorithm, Draws, StreamDraws, choose, largest, one_hot
from icrl.algorithms.beta_thompson import BetaThompson
from icrl.algorithms.empirical_mean import EmpiricalMean
from icrl.algorithms.epsilon_greedy import EpsilonGreedy
from icrl.algorithms.gaussian_thompson import GaussianThompson
from icrl.algorithms.linucb import LinUCB
from icrl.algorithms.mixture import Mixture
from icrl.algorithms.optimal import Optimal
from icrl.algorithms.thompson import Thompson, noise_variance
from icrl.algorithms.ucb import UCB
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
    ThompsonConfig,
    UCBConfig,
    UniformConfig,
)

__all__ = [
    "UCB",
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
    "build",
    "choose",
    "largest",
    "noise_variance",
    "one_hot",
]


def build(config: AlgorithmConfig, environment: EnvironmentConfig) -> Algorithm:
    """The algorithm that a config names."""
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
        case _:
            raise ValueError(f"algorithm = {config.algorithm}: not in this version")
