"""The general loop as a generator of trajectories, for what has no compiled rollout.

Vectorised float64 sums may differ in their last bit with the number of rows beside them. So interactions are always
played in the same company: BLOCK consecutive indices, whichever of them are asked for.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from icrl import algorithms, envs
from icrl.config import AlgorithmConfig, EnvironmentConfig
from icrl.rollout.loop import play
from icrl.streams import Split
from icrl.trajectory import TrajectoryBatch

BLOCK = 256


def fill(
    environment: EnvironmentConfig,
    algorithm: AlgorithmConfig,
    seed: int,
    split: Split,
    rows: npt.NDArray[np.int64],
    out: TrajectoryBatch,
) -> None:
    """Play these rows of `out` and fill in all that was seen and what would have been best."""
    blocks = out.index[rows] // BLOCK
    for block in np.unique(blocks):
        mine = rows[blocks == block]
        company = block * BLOCK + np.arange(BLOCK)
        played = play(environment, algorithms.build(algorithm, environment), seed, split, company)
        at = out.index[mine] - company[0]
        out.action[mine], out.reward[mine] = played.action[at], played.reward[at]
        every = played.optimal_action[at]
        out.optimal_action[mine] = every if out.optimal_action.ndim == 2 else every[:, 0]
        if out.state is not None and played.state is not None:
            out.state[mine] = played.state[at]
        if out.optimal_policy is not None:
            batch = envs.sample(environment, seed, split, out.index[mine])
            assert isinstance(batch, envs.MDPBatch)
            out.optimal_policy[mine] = batch.optimal_policy
