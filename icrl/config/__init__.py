"""Configs of every stage as frozen dataclasses, and how YAML and `key=value` become them.

Imports nothing heavier than OmegaConf: `--help` and config errors answer at once.
"""

from icrl.config.build import build, to_dict
from icrl.config.load import Loaded, config_hash, difference, dump, flatten, from_dict, identity, load, override
from icrl.config.schema import (
    AlgorithmConfig,
    Config,
    ConfigError,
    ContextComponent,
    EmpiricalMeanConfig,
    EnvironmentConfig,
    LinearBanditConfig,
    LinUCBConfig,
    ModelConfig,
    OptimalConfig,
    Problem,
    ThompsonConfig,
    TrainConfig,
    UniformConfig,
    batch_problems,
)

__all__ = [
    "AlgorithmConfig",
    "Config",
    "ConfigError",
    "ContextComponent",
    "EmpiricalMeanConfig",
    "EnvironmentConfig",
    "LinUCBConfig",
    "LinearBanditConfig",
    "Loaded",
    "ModelConfig",
    "OptimalConfig",
    "Problem",
    "ThompsonConfig",
    "TrainConfig",
    "UniformConfig",
    "batch_problems",
    "build",
    "config_hash",
    "difference",
    "dump",
    "flatten",
    "from_dict",
    "identity",
    "load",
    "override",
    "to_dict",
]
