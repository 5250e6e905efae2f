"""The stochastic linear bandit with a fixed action set: r_t = <a_t, w*> + noise_std * z_t (paper, section 4.1).

Shapes: B environments, A actions, d dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from icrl import streams
from icrl.config.schema import LinearBanditConfig
from icrl.streams import Split, Stream


@dataclass(frozen=True)
class LinearBanditBatch:
    """B environments drawn from the prior."""

    index: npt.NDArray[np.int64]
    """int64[B]: global trajectory index."""
    theta: npt.NDArray[np.float32]
    """float32[B, d]: w*."""
    action_set: npt.NDArray[np.float32]
    """float32[B, A, d]: the actions' features."""
    means: npt.NDArray[np.float32]
    """float32[B, A]: <a, w*>, summed over ascending coordinates."""
    optimal_action: npt.NDArray[np.uint8]
    """uint8[B]: the action with the largest mean; the lowest wins ties."""


def sample(
    environment: LinearBanditConfig, seed: int, split: Split, indices: npt.NDArray[np.int64]
) -> LinearBanditBatch:
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
    return LinearBanditBatch(
        index=np.ascontiguousarray(indices, dtype=np.int64),
        theta=theta,
        action_set=action_set,
        means=means,
        optimal_action=means.argmax(axis=1).astype(np.uint8),
    )


def rewards(
    environment: LinearBanditConfig,
    batch: LinearBanditBatch,
    action: npt.NDArray[np.int64],
    noise: npt.NDArray[np.float32],
) -> npt.NDArray[np.float32]:
    """float32[B]: the reward of action int64[B] under standard normal noise float32[B]; bit-equal to the kernels'."""
    means = np.take_along_axis(batch.means, action[:, None], axis=1)[:, 0]
    return means + np.float32(environment.noise_std) * noise
