"""Environments: the prior over them, sampled from counter-based streams, and how B of them are played in lockstep.

Knows no algorithm. Everything is a function of (config, seed, split, trajectory index).
"""

from __future__ import annotations

from typing import assert_never, overload

import numpy as np
import numpy.typing as npt

from icrl.config import (
    BanditConfig,
    BernoulliBanditConfig,
    EnvironmentConfig,
    GaussianBanditConfig,
    GridWorldConfig,
    LinearBanditConfig,
    MDPConfig,
    TabularMDPConfig,
)
from icrl.envs import linear_bandit, multi_armed, tabular_mdp
from icrl.envs.bandit import BanditBatch, BanditInteraction, rewards
from icrl.envs.base import Batch, Interaction, Observation
from icrl.envs.tabular_mdp import MDPBatch, MDPInteraction
from icrl.streams import Split

__all__ = [
    "BanditBatch",
    "BanditInteraction",
    "Batch",
    "Interaction",
    "MDPBatch",
    "MDPInteraction",
    "Observation",
    "action_sets",
    "interact",
    "rewards",
    "sample",
]


@overload
def sample(environment: BanditConfig, seed: int, split: Split, indices: npt.NDArray[np.int64]) -> BanditBatch: ...
@overload
def sample(environment: MDPConfig, seed: int, split: Split, indices: npt.NDArray[np.int64]) -> MDPBatch: ...
def sample(environment: EnvironmentConfig, seed: int, split: Split, indices: npt.NDArray[np.int64]) -> Batch:
    """The environments of these trajectory indices, drawn from the config's prior."""
    match environment:
        case LinearBanditConfig():
            return linear_bandit.sample(environment, seed, split, indices)
        case BernoulliBanditConfig() | GaussianBanditConfig():
            return multi_armed.sample(environment, seed, split, indices)
        case TabularMDPConfig() | GridWorldConfig():
            return tabular_mdp.sample(environment, seed, split, indices)
        case _:
            assert_never(environment)


def action_sets(
    environment: BanditConfig, seed: int, split: Split, indices: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """float32[B, A, d]: `sample(...).action_set`, without the rest where that is cheaper."""
    plain = ("unit_box", "fixed")  # after w* come the actions, in one stream
    if isinstance(environment, LinearBanditConfig) and (environment.prior, environment.action_set) == plain:
        return linear_bandit.action_sets(environment, seed, split, indices)
    return sample(environment, seed, split, indices).action_set


def interact(environment: EnvironmentConfig, batch: Batch, seed: int, split: Split) -> Interaction:
    """A play of these environments from their first round on; noise and transitions are functions of index and round.

    `batch` must come from `sample` with the same environment, seed and split.
    """
    match environment:
        case LinearBanditConfig() | BernoulliBanditConfig() | GaussianBanditConfig():
            assert isinstance(batch, BanditBatch)
            return BanditInteraction(environment, batch, seed, split)
        case TabularMDPConfig() | GridWorldConfig():
            assert isinstance(batch, MDPBatch)
            return MDPInteraction(environment, batch, seed, split)
        case _:
            assert_never(environment)
