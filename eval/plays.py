"""Trajectories to look at a model with: an algorithm's plays in the evaluation's environments, as the model reads them.

Shapes: B environments, T rounds, A actions, d dim.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from icrl import algorithms, envs
from icrl.config import AlgorithmConfig, EnvironmentConfig
from icrl.envs import BanditBatch
from icrl.rollout.loop import play
from icrl.streams import Split


class Plays(NamedTuple):
    """The arguments of `Transformer.forward`."""

    shown: Tensor
    """Action sets [B,A,d] of a bandit, states int [B,T] of an MDP."""
    action: Tensor
    """int64 [B,T]."""
    reward: Tensor
    """float32 [B,T]."""


def plays(environment: EnvironmentConfig, algorithm: AlgorithmConfig, seed: int, n: int) -> Plays:
    """T rounds of the algorithm in the first n environments of split EVAL under this seed."""
    index = np.arange(n, dtype=np.int64)
    played = play(environment, algorithms.build(algorithm, environment), seed, Split.EVAL, index)
    batch = envs.sample(environment, seed, Split.EVAL, index)
    shown = batch.action_set if isinstance(batch, BanditBatch) else played.state
    assert shown is not None
    exact = torch.from_numpy(shown if isinstance(batch, BanditBatch) else shown.astype(np.int64))
    return Plays(exact, torch.from_numpy(played.action.astype(np.int64)), torch.from_numpy(played.reward))
