"""Algorithms: batched policies over interactions that run in lockstep, in float64 NumPy.

They know environments and draw no random numbers of their own; rollouts hand them both.
"""

from __future__ import annotations

from icrl.algorithms.base import Algorithm, Draws, StreamDraws, choose, largest, one_hot
from icrl.algorithms.empirical_mean import EmpiricalMean
from icrl.algorithms.linucb import LinUCB
from icrl.algorithms.optimal import Optimal
from icrl.algorithms.psrl import PSRL
from icrl.algorithms.thompson import Thompson, noise_variance
from icrl.algorithms.ucb_vi import UCBVI, bonuses
from icrl.algorithms.uniform import Uniform
from icrl.config import (
    AlgorithmConfig,
    EmpiricalMeanConfig,
    EnvironmentConfig,
    LinUCBConfig,
    OptimalConfig,
    PSRLConfig,
    ThompsonConfig,
    UCBVIConfig,
    UniformConfig,
)

__all__ = [
    "PSRL",
    "UCBVI",
    "Algorithm",
    "Draws",
    "EmpiricalMean",
    "LinUCB",
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
    """The algorithm that a config names."""
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
        case UCBVIConfig():
            return UCBVI(config, environment)
        case PSRLConfig():
            return PSRL(config, environment)
        case _:
            raise ValueError(f"algorithm = {config.algorithm}: not in this version")
