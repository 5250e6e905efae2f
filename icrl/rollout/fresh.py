"""The same for linear bandits whose action set is new in every round: the d-dimensional posterior is kept instead.

The vectors of `icrl.rollout.steps` are the d unit vectors: their factors are the rows of S, their means w_t. Every
round the action set is drawn, used and forgotten: F = X S, m = X w_t, and phi = F_j moves S and w_t.

Shapes: n trajectories, B rows of the arrays they are written to, W lanes, T rounds, A actions, d dim.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from numba import njit

from icrl import streams
from icrl.rollout import kernels, lanes, steps
from icrl.rollout.kernels import PLAY_LINUCB, PLAY_OPTIMAL, draw_rows, select, take_lanes
from icrl.rollout.lanes import (
    ACTION,
    BERNOULLI,
    BEST,
    LANES,
    TAG_ACTION_SET,
    TRUTH,
    Dim,
    Indices,
    Rows,
    U,
    W,
    clip_truth,
    feature_rows,
    fresh_tables,
    noise_rows,
    row,
    table,
    theta_rows,
)
from icrl.rollout.steps import Action, Real, gains, learn, pull, tables, write

_ZERO = np.float32(0)
_INFINITY = np.float32(np.inf)


@njit(nogil=True)
def start_root(S: Rows, n_actions: int, dim: Dim, scale: Real) -> None:
    """Prior: S = I / sqrt(ridge), w = 0."""
    d = len(dim)
    _, root, mean, _, _ = fresh_tables(dim, n_actions)
    for i in range(d):
        for k in range(d):
            for w in range(W):
                S[root + row(k * d + i) + w] = scale if i == k else _ZERO
        for w in range(W):
            S[mean + row(i) + w] = _ZERO


@njit(nogil=True)
def select_optimal(S: Rows, n_actions: int, dim: Dim) -> None:
    """ACTION = argmax TRUTH; the lowest action wins ties."""
    d = len(dim)
    best, action, truths = row(d + BEST), row(d + ACTION), table(dim, n_actions, d + TRUTH)
    for w in range(W):
        S[best + w] = -_INFINITY
    for a in range(n_actions):
        at, number = row(a), np.float32(a)
        for w in range(W):
            value = S[truths + at + w]
            best_w, action_w = S[best + w], S[action + w]
            better = value > best_w
            S[best + w] = value if better else best_w
            S[action + w] = number if better else action_w


@njit(nogil=True)
def write_optimal(S: Rows, dim: Dim, t: int, to: Indices, optimal_action: Action) -> None:
    """ACTION of every lane into uint8[B T], at to[w] + t."""
    best = row(len(dim) + ACTION)
    for w in range(W):
        optimal_action[to[w] + U(t)] = np.uint8(np.int32(S[best + w]))


@njit(nogil=True)
def project(S: Rows, n_actions: int, dim: Dim) -> None:
    """F = X S, m = X w and q_a = |F_a|^2 of the round's actions."""
    d = len(dim)
    features, root, mean, _, _ = fresh_tables(dim, n_actions)
    factors, means, squares = tables(dim, n_actions)
    table_rows = row(n_actions)
    for a in range(n_actions):
        at = row(a)
        for k in range(d):
            for w in range(W):
                f = _ZERO
                for i in range(d):
                    f += S[features + U(i) * table_rows + at + w] * S[root + row(k * d + i) + w]
                S[factors + U(k) * table_rows + at + w] = f
        for w in range(W):
            m = _ZERO
            square = _ZERO
            for k in range(d):
                m += S[features + U(k) * table_rows + at + w] * S[mean + row(k) + w]
                f = S[factors + U(k) * table_rows + at + w]
                square += f * f
            S[means + at + w] = m
            S[squares + at + w] = square


@njit(nogil=True)
def learn_root(S: Rows, n_actions: int, dim: Dim) -> None:
    """Potter's step for S and w."""
    d = len(dim)
    _, root, mean, _, _ = fresh_tables(dim, n_actions)
    gains(S, dim)
    for i in range(d):
        at = row(i)
        for w in range(W):
            learn(S, dim, w, root + at, row(d), mean + at, U(0))


def _compile(sources: int) -> Callable[..., None]:
    @njit(cache=True, nogil=True)
    def rollout(
        kind: int,
        prior: int,
        law: int,
        dim: Dim,
        n_actions: int,
        parameters: Rows,
        key: Indices,
        index: npt.NDArray[np.int64],
        rows: npt.NDArray[np.int64],
        S: Rows,
        action: Action,
        reward: Rows,
        optimal_action: Action,
    ) -> None:
        _ = sources
        noise_std, scale, weight, sharpness = parameters
        k0, k1, split = key
        d, T = len(dim), action.shape[1]
        words, to = np.empty(2 * LANES, np.uint64), np.empty(LANES, np.uint64)
        linear = kind >= PLAY_LINUCB
        actions, rewards, optimal = action.reshape(-1), reward.reshape(-1), optimal_action.reshape(-1)
        features, _, _, theta, four = fresh_tables(dim, n_actions)
        for first in range(0, index.size, LANES):
            take_lanes(index, rows, first, T, words, to)
            theta_rows(S, theta, four, dim, k0, k1, split, words, prior)
            if linear:
                start_root(S, n_actions, dim, scale)
            for t in range(T):
                at = t * n_actions * d
                feature_rows(S, n_actions, dim, features, theta, four, at, k0, k1, split | TAG_ACTION_SET, words)
                if law == BERNOULLI:
                    clip_truth(S, n_actions, dim)
                select_optimal(S, n_actions, dim)
                write_optimal(S, dim, t, to, optimal)
                if t % 4 == 0:
                    noise_rows(S, dim, t, k0, k1, split, words, law)
                    draw_rows(S, kind, dim, t, k0, k1, split, words)
                if linear:
                    project(S, n_actions, dim)
                if kind != PLAY_OPTIMAL:
                    select(S, kind, n_actions, dim, t, weight, sharpness)
                pull(S, n_actions, dim, noise_std, law, linear, t)
                write(S, dim, t, to, actions, rewards)
                if linear:
                    learn_root(S, n_actions, dim)

    return rollout


# numba's cache watches this file only; what it inlines from the others must be part of the key too
_SOURCES = (streams, lanes, steps, kernels)
rollout = _compile(zlib.crc32(b"".join(Path(str(module.__file__)).read_bytes() for module in _SOURCES)))
