"""Multi-armed bandits with independent actions: Bernoulli and Gaussian (paper, section 4.2).

Shapes: B environments, A actions.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from icrl import streams
from icrl.config import BernoulliBanditConfig, MultiArmedConfig
from icrl.envs.bandit import BanditBatch
from icrl.streams import Split, Stream


def sample(environment: MultiArmedConfig, seed: int, split: Split, indices: npt.NDArray[np.int64]) -> BanditBatch:
    """The environments of these trajectory indices.

    Bernoulli: p ~ Unif[0, 1)^A, the uniforms 0 .. A-1 of stream ENVIRONMENT; Gaussian: means ~ N(0, prior_std^2), its
    normals.
    """
    A = environment.n_actions
    if isinstance(environment, BernoulliBanditConfig):
        means = streams.uniforms(seed, split, Stream.ENVIRONMENT, indices, A)
    else:
        normals = streams.normals(seed, split, Stream.ENVIRONMENT, indices, A)
        means = np.float32(environment.prior_std) * normals
    return BanditBatch(
        index=np.ascontiguousarray(indices, dtype=np.int64),
        theta=means,
        action_set=np.tile(np.eye(A, dtype=np.float32), (len(means), 1, 1)),
        means=means,
        optimal_action=means.argmax(axis=1).astype(np.uint8),
    )
