"""The stochastic linear bandit with a fixed action set: r_t = <a_t, w*> + noise_std * z_t (paper, section 4.1).

Shapes: B environments, A actions, d dim.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from icrl import streams
from icrl.config import LinearBanditConfig
from icrl.envs.bandit import BanditBatch
from icrl.streams import Split, Stream


def sample(environment: LinearBanditConfig, seed: int, split: Split, indices: npt.NDArray[np.int64]) -> BanditBatch:
    """The environments of these trajectory indices: w* ~ Unif[0, 1]^d, actions iid Unif[-1, 1]^d, in 24-bit steps.

    Bit-equal to what the compiled rollouts see: positions 0 .. d-1 of stream ENVIRONMENT are w*, the next A d actions.
    """
    A, d = environment.n_actions, environment.dim
    u = streams.uniforms(seed, split, Stream.ENVIRONMENT, indices, d + A * d)
    theta = np.ascontiguousarray(u[:, :d])
    action_set = (np.float32(2) * u[:, d:] - np.float32(1)).reshape(-1, A, d)
    means = action_set[:, :, 0] * theta[:, None, 0]
    for k in range(1, d):  # one fixed order of float32 additions, shared with the kernels
        means += action_set[:, :, k] * theta[:, None, k]
    return BanditBatch(
        index=np.ascontiguousarray(indices, dtype=np.int64),
        theta=theta,
        action_set=action_set,
        means=means,
        optimal_action=means.argmax(axis=1).astype(np.uint8),
    )


def action_sets(
    environment: LinearBanditConfig, seed: int, split: Split, indices: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """float32[B, A, d]: `sample(...).action_set` of fixed action sets, without the rest."""
    A, d = environment.n_actions, environment.dim
    actions = streams.uniforms(seed, split, Stream.ENVIRONMENT, indices, A * d, start=d)
    actions *= np.float32(2)
    actions -= np.float32(1)
    return actions.reshape(-1, A, d)
