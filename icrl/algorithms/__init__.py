"""Algorithms: batched policies over interactions that run in lockstep, in float64 NumPy.

They know environments and draw no random numbers of their own; rollouts hand them both.
"""

from __future__ import annotations

from icrl.algorithms.base import Algorithm, Draws, StreamDraws, choose, largest, one_hot
from icrl.algorithms.empirical_mean import EmpiricalMean
from icrl.algorithms.linucb import LinUCB
from icrl.algorithms.optimal import Optimal
from icrl.algorithms.thompson import Thompson, noise_variance
from icrl.algorithms.uniform import Uniform
from icrl.config import (
    AlgorithmConfig,
    EmpiricalMeanConfig,
    EnvironmentConfig,
    LinUCBConfig,
    OptimalConfig,
    ThompsonConfig,
    UniformConfig,
    algorithm_misfits,
)

__all__ = [
    "Algorithm",
    "Draws",
    "EmpiricalMean",
    "LinUCB",
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
        case LinUCBConfig():
            return LinUCB(config)
        case ThompsonConfig():
            return Thompson(config, environment)
        case _:
            raise ValueError(f"algorithm = {config.algorithm}: not in this version")
