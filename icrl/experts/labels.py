"""Labels as views: what the expert says at every round, from what a dataset stores.

A label is a function of the trajectory, of its environment (optimal) and, where it is drawn, of (seed, split, index).

Shapes: B trajectories, T rounds, A actions, d dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from icrl import envs, gammas, streams
from icrl.config import BernoulliBanditConfig, Config, GaussianBanditConfig, LinearBanditConfig
from icrl.experts.posterior import (
    BOX_PROPOSAL_VARIANCE,
    Normal,
    box_log_weight,
    gaussian_means,
    linear_posterior,
    tallies,
)
from icrl.rollout.replay import action_sets
from icrl.streams import Split, Stream

Actions = npt.NDArray[np.int64]
Rows = Mapping[str, npt.NDArray[Any]]

_ATTEMPTS = 32, 4096
"""Attempts of a rejection that are made at once: first, and at most; which is accepted does not depend on it."""


def labels(config: Config, rows: Rows, split: Split) -> Actions:
    """int64[B, T]: the labels of these rows of a split, arrays of the dataset by name with `index` int64[B].

    distillation: the context's own action (algorithm distillation); optimal: the best action of the environment (DPT);
    approximate: `approximate`, one action a trajectory where the action set is fixed.
    """
    shape = rows["action"].shape
    match config.expert.label:
        case "distillation":
            return rows["action"].astype(np.int64)
        case "optimal":
            best = rows["optimal_action"].astype(np.int64)
        case _:
            best = approximate(config, rows, split)
    return best if best.ndim == 2 else np.repeat(best[:, None], shape[1], axis=1)


def approximate(config: Config, rows: Rows, split: Split) -> Actions:
    """int64[B]: the best action as estimated from the whole trajectory; int64[B, T] where the actions change.

    empirical_mean: the action with the best mean reward; one that was never played has none and is not chosen.
    posterior_mean: the best posterior mean; of Bernoulli bandits (1 + s) / (2 + n), of Gaussian bandits the exact one,
    of linear bandits that of the working model (`icrl.experts.posterior`).
    posterior_sample: the best in one environment drawn from the exact posterior, from stream LABEL; its law is
    P_TS(. | D_T), the posterior of the best action. The lowest action wins ties.
    """
    best: Actions = _values(config, rows, split).argmax(axis=-1)
    return best


def _values(config: Config, rows: Rows, split: Split) -> npt.NDArray[np.floating]:
    """[B, A] or [B, T, A]: what is estimated of every action, to be the largest."""
    environment, seed = config.environment, config.dataset.seed
    action, reward = rows["action"].astype(np.int64), np.asarray(rows["reward"], np.float32)
    index = rows["index"].astype(np.int64)
    estimator = config.expert.estimates_by
    seen = tallies(action, reward, environment.n_actions)
    if estimator == "empirical_mean":
        value = np.full(seen.sum.shape, -np.inf)
        np.divide(seen.sum, seen.count, out=value, where=seen.count > 0)
        return value
    sampled = estimator == "posterior_sample"
    match environment:
        case BernoulliBanditConfig():
            a, b = 1 + seen.sum, 1 + seen.count - seen.sum
            if sampled:
                return gammas.betas(seed, split, Stream.LABEL, index, a.astype(np.float32), b.astype(np.float32))
            return a / (a + b)
        case GaussianBanditConfig():
            mean, std = gaussian_means(environment, seen)
            if sampled:
                mean = mean + std * streams.normals(seed, split, Stream.LABEL, index, environment.n_actions)
            return mean
        case LinearBanditConfig():
            features = _features(environment, rows, index, seed, split)
            box = sampled and environment.prior == "unit_box"
            prior = (0.5, BOX_PROPOSAL_VARIANCE) if box else None
            posterior = linear_posterior(environment, features, action, reward, prior)
            w = posterior.mean
            if box:
                w = _draw_in_box(posterior, seed, split, index)
            elif sampled:
                w = posterior.samples(streams.normals(seed, split, Stream.LABEL, index, w.shape[1])[:, None])[:, 0]
            wide = w[:, :, None] if features.ndim == 3 else w[:, None, :, None]
            linear: npt.NDArray[np.float64] = (features.astype(np.float64) @ wide)[..., 0]
            return linear
        case _:
            raise ValueError(f"expert.label = approximate: expected a bandit, got {environment.kind}")


def _features(
    environment: LinearBanditConfig, rows: Rows, index: npt.NDArray[np.int64], seed: int, split: Split
) -> npt.NDArray[np.float32]:
    """float32[B, A, d], or [B, T, A, d] where the actions change."""
    fresh = environment.action_set == "fresh"
    given = rows.get("action_set")
    if given is not None and given.ndim == (4 if fresh else 3):
        return np.asarray(given, np.float32)
    every = action_sets(environment, seed, split, index)
    return envs.sample(environment, seed, split, index).action_set if every is None else every


def _draw_in_box(posterior: Normal, seed: int, split: Split, index: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """float64[B, d]: an exact draw of w* under the prior Unif[0, 1]^d, by rejection.

    `posterior` is the one under N(1/2, BOX_PROPOSAL_VARIANCE I); attempt n takes the n-th d normals and the n-th
    uniform of stream LABEL.
    """
    B, d = posterior.mean.shape
    out = np.empty((B, d))
    rows, first, count = np.arange(B), 0, _ATTEMPTS[0]
    while rows.size:
        z = streams.normals(seed, split, Stream.LABEL, index[rows], count * d, start=first * d)
        u = streams.uniforms(seed, split, Stream.LABEL, index[rows], count, start=first)
        w = Normal(posterior.mean[rows], posterior.root[rows]).samples(z.reshape(rows.size, count, d))
        accepted = u < np.exp(box_log_weight(w))
        found = accepted.any(axis=1)
        out[rows[found]] = w[found, accepted[found].argmax(axis=1)]
        rows, first, count = rows[~found], first + count, min(2 * count, _ATTEMPTS[1])
    return out
