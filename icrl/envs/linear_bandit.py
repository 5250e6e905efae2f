"""The stochastic linear bandit: r_t = <a_t, w*> + noise (paper, section 4.1), its priors and its action sets.

Where rewards are 0 or 1, their mean is clip(<a, w*>, 0, 1).

Shapes: B environments, A actions, d dim.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from icrl import streams
from icrl.config import LinearBanditConfig
from icrl.envs.bandit import BanditBatch, BanditInteraction
from icrl.envs.base import Observation
from icrl.streams import Split, Stream

_ZERO, _ONE, _TWO = np.float32(0), np.float32(1), np.float32(2)


def sample(environment: LinearBanditConfig, seed: int, split: Split, indices: npt.NDArray[np.int64]) -> BanditBatch:
    """The environments of these trajectory indices; bit-equal to what the compiled rollouts see.

    w*: unit_box takes the uniforms 0 .. d-1 of stream ENVIRONMENT, gaussian and sphere its normals 0 .. d-1. A fixed
    action set takes the uniforms d .. d+Ad-1 of the same stream under every prior, iid Unif[-1, 1)^d in 24-bit steps.
    """
    A, d = environment.n_actions, environment.dim
    fixed = environment.action_set == "fixed"
    u = streams.uniforms(seed, split, Stream.ENVIRONMENT, indices, d + A * d * fixed)
    if environment.prior == "unit_box":
        theta = np.ascontiguousarray(u[:, :d])
    else:
        theta = streams.normals(seed, split, Stream.ENVIRONMENT, indices, d)
        if environment.prior == "sphere":
            theta = on_the_sphere(theta)
    if fixed:
        action_set = (_TWO * u[:, d:] - _ONE).reshape(-1, A, d)
    else:
        action_set = fresh_action_set(environment, seed, split, indices, 0)
    clipped = environment.noise == "bernoulli"
    means = expected_rewards(action_set, theta, clipped=clipped)
    return BanditBatch(
        index=np.ascontiguousarray(indices, dtype=np.int64),
        theta=theta,
        action_set=action_set,
        means=means,
        optimal_action=means.argmax(axis=1).astype(np.uint8),
        clipped=clipped,
    )


def on_the_sphere(normals: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """float32[B, d]: g / |g|, uniform on the unit sphere; the first unit vector where g = 0 (24 bits: it happens)."""
    square = normals[:, 0] * normals[:, 0]
    for k in range(1, normals.shape[1]):  # one fixed order of float32 additions, shared with the kernels
        square += normals[:, k] * normals[:, k]
    centre = square == _ZERO
    square[centre] = _ONE
    theta: npt.NDArray[np.float32] = normals / np.sqrt(square)[:, None]
    theta[centre, 0] = _ONE
    return theta


def fresh_action_set(
    environment: LinearBanditConfig, seed: int, split: Split, indices: npt.NDArray[np.int64], t: int
) -> npt.NDArray[np.float32]:
    """float32[B, A, d]: the actions of round t (from 0), the uniforms t A d .. (t+1) A d - 1 of stream ACTION_SET."""
    A, d = environment.n_actions, environment.dim
    u = streams.uniforms(seed, split, Stream.ACTION_SET, indices, A * d, start=t * A * d)
    action_set: npt.NDArray[np.float32] = (_TWO * u - _ONE).reshape(-1, A, d)
    return action_set


def expected_rewards(
    action_set: npt.NDArray[np.float32], theta: npt.NDArray[np.float32], *, clipped: bool
) -> npt.NDArray[np.float32]:
    """float32[B, A]: <a, w*> of action_set float32[B, A, d] and theta float32[B, d]; clipped to [0, 1] if so."""
    means = action_set[:, :, 0] * theta[:, None, 0]
    for k in range(1, theta.shape[1]):  # one fixed order of float32 additions, shared with the kernels
        means += action_set[:, :, k] * theta[:, None, k]
    return np.clip(means, _ZERO, _ONE) if clipped else means


def with_action_set(batch: BanditBatch, action_set: npt.NDArray[np.float32]) -> BanditBatch:
    """The same environments in a round with these actions, float32[B, A, d]."""
    means = expected_rewards(action_set, batch.theta, clipped=batch.clipped)
    best = means.argmax(axis=1).astype(np.uint8)
    return dataclasses.replace(batch, action_set=action_set, means=means, optimal_action=best)


class FreshInteraction(BanditInteraction):
    """A play of B linear bandits that meet new actions every round; the actions are a function of index and round."""

    _environment: LinearBanditConfig

    def observe(self) -> Observation:
        return self._batch.action_set

    def step(self, action: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        reward = super().step(action)
        if self._round < self._environment.horizon:
            fresh = fresh_action_set(self._environment, *self._key, self._batch.index, self._round)
            self._batch = with_action_set(self._batch, fresh)
        return reward


def action_sets(
    environment: LinearBanditConfig, seed: int, split: Split, indices: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """float32[B, A, d]: `sample(...).action_set` of fixed action sets, without the rest."""
    A, d = environment.n_actions, environment.dim
    actions = streams.uniforms(seed, split, Stream.ENVIRONMENT, indices, A * d, start=d)
    actions *= np.float32(2)
    actions -= np.float32(1)
    return actions.reshape(-1, A, d)
