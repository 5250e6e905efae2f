"""Environment x algorithm, fused and compiled: blocks of W trajectories run in lockstep as the lanes of vectors.

A lane is computed by the same scalar float32 operations in the same order whatever its neighbours are, and depends on
its trajectory index alone: any partition and any order of indices gives the same bytes.

Shapes: n trajectories, B rows of the arrays they are written to, W lanes, T rounds, d dim.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from numba import njit

from icrl import streams
from icrl.rollout import lanes, steps
from icrl.rollout.lanes import (
    ACTION,
    BERNOULLI,
    LANES,
    TAG_ENVIRONMENT,
    TAG_NORMAL,
    TAG_UNIFORM,
    Dim,
    Indices,
    Rows,
    U,
    Word,
    clip_truth,
    draws_row,
    feature_rows,
    noise_rows,
    normal_rows,
    optimal_lanes,
    row,
    table,
    theta_rows,
    uniform_rows,
)
from icrl.rollout.steps import (
    Action,
    Real,
    learn_empirical_mean,
    learn_select_index,
    learn_select_thompson,
    learn_squares,
    pull,
    select_index,
    select_soft_index,
    select_thompson,
    select_uniform,
    start_empirical_mean,
    start_linear,
    write,
)

PLAY_UNIFORM, PLAY_OPTIMAL, PLAY_EMPIRICAL_MEAN, PLAY_LINUCB, PLAY_SOFT_LINUCB, PLAY_THOMPSON = range(6)
"""Algorithms, as the kernels know them."""

_ZERO = np.float32(0)


@njit(nogil=True)
def take_lanes(
    index: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], first: int, T: int, words: Indices, to: Indices
) -> None:
    """A block's indices as words uint64[2 W] (low, high), and as uint64[W] where their rows start in [B, T], flat.

    A last block that is short is filled up with its first trajectory, which is then written more than once.
    """
    for lane in range(LANES):
        at = first + lane if first + lane < index.size else first
        i = U(index[at])
        words[lane], words[LANES + lane] = i & U(0xFFFFFFFF), i >> U(32)
        to[lane] = U(rows[at] * T)


@njit(nogil=True)
def draw_rows(S: Rows, kind: int, dim: Dim, t: int, k0: Word, k1: Word, split: Word, words: Indices) -> None:
    """The algorithm's random numbers of rounds t .. t + 3 (4 divides t)."""
    d = len(dim)
    draws = draws_row(dim)
    if kind == PLAY_THOMPSON:
        for k in range(d):
            normal_rows(S, draws + row(4 * k), t // 4 * d + k, k0, k1, split | TAG_NORMAL, words)
    elif kind in (PLAY_UNIFORM, PLAY_SOFT_LINUCB):
        uniform_rows(S, draws, t // 4, k0, k1, split | TAG_UNIFORM, words)


@njit(nogil=True)
def select(S: Rows, kind: int, n_actions: int, dim: Dim, t: int, weight: Real, sharpness: Real) -> None:
    """ACTION of round t."""
    draws = draws_row(dim)
    if kind == PLAY_LINUCB:
        select_index(S, n_actions, dim, weight)
    elif kind == PLAY_THOMPSON:
        select_thompson(S, n_actions, dim, weight, draws + row(t % 4 * len(dim)))
    elif kind == PLAY_SOFT_LINUCB:
        select_soft_index(S, n_actions, dim, weight, sharpness, draws + row(t % 4))
    elif kind == PLAY_UNIFORM:
        select_uniform(S, n_actions, dim, draws + row(t % 4))
    elif kind == PLAY_EMPIRICAL_MEAN:
        select_index(S, n_actions, dim, _ZERO)


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
        optimal_action: npt.NDArray[np.uint8],
    ) -> None:
        _ = sources
        noise_std, scale, weight, sharpness = parameters
        k0, k1, split = key
        d, T = len(dim), action.shape[1]
        words, to = np.empty(2 * LANES, np.uint64), np.empty(LANES, np.uint64)
        optimal = np.empty(LANES, np.uint8)
        linear = kind >= PLAY_LINUCB
        actions, rewards = action.reshape(-1), reward.reshape(-1)
        theta, draws = row(0), draws_row(dim)
        for first in range(0, index.size, LANES):
            take_lanes(index, rows, first, T, words, to)
            theta_rows(S, theta, draws, dim, k0, k1, split, words, prior)
            if d % 4:  # the block in which w* ends and the actions begin
                uniform_rows(S, draws, d // 4, k0, k1, split | TAG_ENVIRONMENT, words)
            factors = table(dim, n_actions, 0)
            feature_rows(S, n_actions, dim, factors, theta, draws, d, k0, k1, split | TAG_ENVIRONMENT, words)
            if law == BERNOULLI:
                clip_truth(S, n_actions, dim)
            optimal_lanes(S, n_actions, dim, optimal)
            for lane in range(LANES):
                optimal_action[to[lane] // U(T)] = optimal[lane]
                S[row(d + ACTION) + U(lane)] = np.float32(optimal[lane])
            if kind >= PLAY_LINUCB:
                start_linear(S, n_actions, dim, scale)
            elif kind == PLAY_EMPIRICAL_MEAN:
                start_empirical_mean(S, n_actions, dim)
            for t in range(T):
                if t == 0:
                    noise_rows(S, dim, t, k0, k1, split, words, law)
                    draw_rows(S, kind, dim, t, k0, k1, split, words)
                if t == 0 or kind not in (PLAY_LINUCB, PLAY_THOMPSON):
                    select(S, kind, n_actions, dim, t, weight, sharpness)
                pull(S, n_actions, dim, noise_std, law, linear, t)
                write(S, dim, t, to, actions, rewards)
                if t + 1 == T:
                    break
                if kind == PLAY_EMPIRICAL_MEAN:
                    learn_empirical_mean(S, n_actions, dim, t)
                if t % 4 == 3:
                    noise_rows(S, dim, t + 1, k0, k1, split, words, law)
                    draw_rows(S, kind, dim, t + 1, k0, k1, split, words)
                if kind == PLAY_LINUCB:
                    learn_select_index(S, n_actions, dim, weight)
                elif kind == PLAY_THOMPSON:
                    learn_select_thompson(S, n_actions, dim, weight, draws + row((t + 1) % 4 * d))
                elif kind == PLAY_SOFT_LINUCB:
                    learn_squares(S, n_actions, dim)

    return rollout


# numba's cache watches this file only; what it inlines from the others must be part of the key too
_SOURCES = (streams, lanes, steps)
rollout = _compile(zlib.crc32(b"".join(Path(str(module.__file__)).read_bytes() for module in _SOURCES)))
