"""Stored trajectories played again: what an algorithm would have done at every round of a history it did not make.

Shapes: B trajectories, T rounds, A actions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from icrl import envs
from icrl.algorithms import Algorithm
from icrl.config import EnvironmentConfig, LinearBanditConfig
from icrl.streams import Split


@dataclass(frozen=True)
class History:
    """B trajectories, from a dataset or made by hand, with the environments they were seen in."""

    environments: envs.Batch
    action: npt.NDArray[np.int64]
    """int64[B, T]."""
    reward: npt.NDArray[np.float32]
    """float32[B, T]."""
    state: npt.NDArray[np.int64] | None = None
    """int64[B, T]: s_t of an MDP."""
    action_sets: npt.NDArray[np.float32] | None = None
    """float32[B, T, A, d], where the actions change from round to round."""

    @property
    def horizon(self) -> int:
        """T."""
        return int(self.action.shape[1])

    def observation(self, t: int) -> envs.Observation:
        """s_t of round t (from 0), as an algorithm sees it."""
        if self.state is not None:
            return self.state[:, t]
        return None if self.action_sets is None else self.action_sets[:, t]


def history(environment: EnvironmentConfig, seed: int, split: Split, rows: Mapping[str, npt.NDArray[Any]]) -> History:
    """The history in `rows`: arrays of a dataset by name, with `index` int64[B]; the rest is regenerated."""
    index = rows["index"].astype(np.int64)
    state = rows["state"].astype(np.int64) if "state" in rows else None
    return History(
        environments=envs.sample(environment, seed, split, index),
        action=rows["action"].astype(np.int64),
        reward=np.asarray(rows["reward"], np.float32),
        state=state,
        action_sets=action_sets(environment, seed, split, index),
    )


def action_sets(
    environment: EnvironmentConfig, seed: int, split: Split, indices: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32] | None:
    """float32[B, T, A, d]: the actions of every round, where they change; else None."""
    if not (isinstance(environment, LinearBanditConfig) and environment.action_set == "fresh"):
        return None
    interaction = envs.interact(environment, envs.sample(environment, seed, split, indices), seed, split)
    anything = np.zeros(len(indices), np.int64)
    shape = (len(indices), environment.horizon, environment.n_actions, environment.dim)
    out = np.empty(shape, np.float32)
    for t in range(environment.horizon):
        out[:, t] = interaction.observe()
        interaction.step(anything)
    return out


def rounds(algorithm: Algorithm, past: History) -> Iterator[npt.NDArray[np.float64]]:
    """Alg(. | D_{t-1}, s_t), float64[B, A], at every round of the history in turn; nothing is drawn."""
    algorithm.reset(past.environments)
    for t in range(past.horizon):
        algorithm.observe(past.observation(t))
        yield algorithm.probabilities()
        algorithm.update(past.action[:, t], past.reward[:, t])


def replay(algorithm: Algorithm, past: History) -> npt.NDArray[np.float64]:
    """float64[B, T, A]: Alg(. | D_{t-1}, s_t) at every round of the history."""
    return np.stack(list(rounds(algorithm, past)), axis=1)


def played(probabilities: npt.NDArray[np.float64], action: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """float64[...]: the probability of each action that was played; probabilities [..., A], action [...]."""
    taken: npt.NDArray[np.float64] = np.take_along_axis(probabilities, action[..., None], axis=-1)[..., 0]
    return taken
