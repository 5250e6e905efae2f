"""Environment x algorithm, fused and compiled: blocks of W trajectories run in lockstep as the lanes of vectors.

A lane is computed by the same scalar float32 operations in the same order whatever its neighbours are, and depends on
its trajectory index alone: any partition and any order of indices gives the same bytes.

Linear algorithms keep, for S S' = A_t^-1 (A_t = ridge I + sum a a'), only its image on the actions: factors F = X S,
means m = X w_t and squared widths q_a = |F_a|^2 = a' A_t^-1 a. Playing j updates them by Potter's square-root step:
phi = F_j, c = F phi, k = 1 / (1 + |phi|^2), m += c k (r - m_j), F -= c phi' k / (1 + sqrt k).

Shapes: n trajectories, W lanes, T rounds, A actions, d dim.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from icrl import streams
from icrl.rollout import lanes
from icrl.rollout.lanes import (
    ACTION,
    BEST,
    CHUNK,
    COUNT,
    LANES,
    MEAN,
    SHRINK,
    SQUARE,
    STEP,
    TAG_NORMAL,
    TAG_REWARD,
    TAG_UNIFORM,
    TOTAL,
    TRUTH,
    Dim,
    Indices,
    Offset,
    Rows,
    U,
    W,
    draws_row,
    environment_rows,
    normal_rows,
    optimal_lanes,
    rewards_row,
    row,
    table,
    uniform_rows,
)
from icrl.streams import exp_nonpositive

PLAY_UNIFORM, PLAY_OPTIMAL, PLAY_EMPIRICAL_MEAN, PLAY_LINUCB, PLAY_SOFT_LINUCB, PLAY_THOMPSON = range(6)
"""Algorithms, as the kernel knows them."""

Real = Any  # np.float32 inside compiled code
_ZERO = np.float32(0)
_ONE = np.float32(1)
_INFINITY = np.float32(np.inf)


@njit(forceinline=True)
def tables(dim: Dim, n_actions: int) -> tuple[Offset, Offset, Offset]:
    """Where the factors, the means and the squared widths start."""
    d = len(dim)
    return table(dim, n_actions, 0), table(dim, n_actions, d + MEAN), table(dim, n_actions, d + SQUARE)


@njit(nogil=True)
def start_linear(S: Rows, n_actions: int, dim: Dim, scale: Real) -> None:
    """Prior: F = X / sqrt(ridge), m = 0, q = |F_a|^2."""
    d = len(dim)
    factors, means, squares = tables(dim, n_actions)
    table_rows = row(n_actions)
    for a in range(n_actions):
        at = row(a)
        for w in range(W):
            square = _ZERO
            for k in range(d):
                f = S[factors + U(k) * table_rows + at + w] * scale
                S[factors + U(k) * table_rows + at + w] = f
                square += f * f
            S[means + at + w] = _ZERO
            S[squares + at + w] = square


@njit(nogil=True)
def start_empirical_mean(S: Rows, n_actions: int, dim: Dim) -> None:
    """No rewards yet: an unplayed action's mean is infinite, so that the lowest of them is played next."""
    sums, means, squares = tables(dim, n_actions)  # the sums of rewards take the place of the first factor
    counts = table(dim, n_actions, len(dim) + COUNT)
    for w in range(row(n_actions)):
        S[means + w] = _INFINITY
        S[sums + w] = _ZERO
        S[squares + w] = _ZERO
        S[counts + w] = _ZERO


@njit(nogil=True)
def select_index(S: Rows, n_actions: int, dim: Dim, confidence: Real) -> None:
    """ACTION = argmax m + confidence sqrt(q); the lowest action wins ties. BEST is left at the maximum."""
    d = len(dim)
    best, action = row(d + BEST), row(d + ACTION)
    _, means, squares = tables(dim, n_actions)
    for w in range(W):
        S[best + w] = -_INFINITY
    for a in range(n_actions):
        at = row(a)
        number = np.float32(a)
        for w in range(W):
            value = S[means + at + w] + confidence * np.sqrt(S[squares + at + w])
            best_w, action_w = S[best + w], S[action + w]
            better = value > best_w
            S[best + w] = value if better else best_w
            S[action + w] = number if better else action_w


@njit(nogil=True)
def select_thompson(S: Rows, n_actions: int, dim: Dim, scale: Real, z: Offset) -> None:
    """ACTION = argmax m + scale F z: a posterior sample's best action; z is where d rows of normals start."""
    d = len(dim)
    best, action = row(d + BEST), row(d + ACTION)
    factors, means, _ = tables(dim, n_actions)
    table_rows = row(n_actions)
    for w in range(W):
        S[best + w] = -_INFINITY
    for a in range(n_actions):
        at = row(a)
        number = np.float32(a)
        for w in range(W):
            noise = _ZERO
            for k in range(d):
                noise += S[factors + U(k) * table_rows + at + w] * S[z + row(k) + w]
            value = S[means + at + w] + scale * noise
            best_w, action_w = S[best + w], S[action + w]
            better = value > best_w
            S[best + w] = value if better else best_w
            S[action + w] = number if better else action_w


@njit(nogil=True)
def select_soft_index(S: Rows, n_actions: int, dim: Dim, confidence: Real, sharpness: Real, u: Offset) -> None:
    """ACTION ~ softmax((m + confidence sqrt(q)) sharpness), by inverse CDF at the row of uniforms that starts at u."""
    d = len(dim)
    best, action, total = row(d + BEST), row(d + ACTION), row(d + TOTAL)
    _, means, squares = tables(dim, n_actions)
    cumulative = table(dim, n_actions, d + COUNT)
    select_index(S, n_actions, dim, confidence)
    for w in range(W):
        S[total + w] = _ZERO
    for a in range(n_actions):
        at = row(a)
        for w in range(W):
            value = S[means + at + w] + confidence * np.sqrt(S[squares + at + w])
            so_far = S[total + w] + exp_nonpositive((value - S[best + w]) * sharpness)
            S[total + w] = so_far
            S[cumulative + at + w] = so_far
    for w in range(W):
        S[total + w] = S[u + w] * S[total + w]
        S[action + w] = _ZERO
    for a in range(n_actions - 1):
        at = row(a)
        for w in range(W):
            passed = S[cumulative + at + w] <= S[total + w]
            S[action + w] += _ONE if passed else _ZERO


@njit(nogil=True)
def select_uniform(S: Rows, n_actions: int, dim: Dim, u: Offset) -> None:
    """ACTION = floor(u A)."""
    action = row(len(dim) + ACTION)
    count = np.float32(n_actions)
    for w in range(W):
        S[action + w] = np.float32(np.int32(S[u + w] * count))


@njit(nogil=True)
def pull(S: Rows, n_actions: int, dim: Dim, noise_std: Real, slot: int) -> None:
    """Play ACTION: noise in the rewards' row `slot` becomes a reward, and the action is noted."""
    d = len(dim)
    reward, noted, action = rewards_row(dim) + row(slot), rewards_row(dim) + row(CHUNK + slot), row(d + ACTION)
    truths = table(dim, n_actions, d + TRUTH)
    for w in range(W):
        played = S[action + w]
        S[noted + w] = played
        S[reward + w] = S[truths + row(np.int32(played)) + w] + noise_std * S[reward + w]


@njit(nogil=True)
def pull_linear(S: Rows, n_actions: int, dim: Dim, noise_std: Real, slot: int) -> None:
    """The same, and what the update needs of the played action's rows: phi = F_j, STEP = r - m_j."""
    d = len(dim)
    reward, noted, action = rewards_row(dim) + row(slot), rewards_row(dim) + row(CHUNK + slot), row(d + ACTION)
    step, truths = row(d + STEP), table(dim, n_actions, d + TRUTH)
    factors, means, _ = tables(dim, n_actions)
    table_rows = row(n_actions)
    for w in range(W):
        number = S[action + w]
        S[noted + w] = number
        played = row(np.int32(number)) + w
        seen = S[truths + played] + noise_std * S[reward + w]
        S[reward + w] = seen
        S[step + w] = seen - S[means + played]
        for k in range(d):
            S[row(k) + w] = S[factors + U(k) * table_rows + played]


@njit(nogil=True, error_model="numpy")
def update_linear(S: Rows, n_actions: int, dim: Dim, kind: int) -> None:
    """Potter's step from phi and STEP (see the module's equations); Thompson sampling needs no widths."""
    d = len(dim)
    step, shrink = row(d + STEP), row(d + SHRINK)
    factors, means, squares = tables(dim, n_actions)
    table_rows = row(n_actions)
    for w in range(W):
        square = _ZERO
        for k in range(d):
            square += S[row(k) + w] * S[row(k) + w]
        gain = _ONE / (_ONE + square)
        S[step + w] = gain * S[step + w]
        S[shrink + w] = gain / (_ONE + np.sqrt(gain))
    for a in range(n_actions):
        at = row(a)
        for w in range(W):
            c = _ZERO
            for k in range(d):
                c += S[factors + U(k) * table_rows + at + w] * S[row(k) + w]
            mean = S[means + at + w] + c * S[step + w]
            c *= S[shrink + w]
            square = _ZERO
            for k in range(d):
                f = S[factors + U(k) * table_rows + at + w] - c * S[row(k) + w]
                S[factors + U(k) * table_rows + at + w] = f
                square += f * f
            S[means + at + w] = mean
            if kind != PLAY_THOMPSON:
                S[squares + at + w] = square


@njit(nogil=True, error_model="numpy")
def update_empirical_mean(S: Rows, n_actions: int, dim: Dim, slot: int) -> None:
    """Count the reward in row `slot` into the mean of ACTION."""
    reward, action = rewards_row(dim) + row(slot), row(len(dim) + ACTION)
    sums, means, _ = tables(dim, n_actions)
    counts = table(dim, n_actions, len(dim) + COUNT)
    for w in range(W):
        played = row(np.int32(S[action + w])) + w
        S[sums + played] += S[reward + w]
        S[counts + played] += _ONE
        S[means + played] = S[sums + played] / S[counts + played]


@njit(nogil=True)
def write_back(
    S: Rows, dim: Dim, t: int, rows: npt.NDArray[np.int64], action: npt.NDArray[np.uint8], reward: Rows
) -> None:
    """Rounds t .. t + CHUNK - 1 (those below T) of the lanes, to their rows of action and reward."""
    rewards = rewards_row(dim)
    actions = rewards + row(CHUNK)
    end = min(CHUNK, action.shape[1] - t)
    for lane in range(rows.size):
        at = rows[lane]
        for slot in range(end):
            action[at, t + slot] = np.uint8(np.int32(S[actions + row(slot) + U(lane)]))
            reward[at, t + slot] = S[rewards + row(slot) + U(lane)]


def _compile(sources: int) -> Callable[..., None]:
    @njit(cache=True, nogil=True)
    def rollout(
        kind: int,
        dim: Dim,
        n_actions: int,
        parameters: Rows,
        key: Indices,
        index: npt.NDArray[np.int64],
        rows: npt.NDArray[np.int64],
        S: Rows,
        action: npt.NDArray[np.uint8],
        reward: Rows,
        optimal_action: npt.NDArray[np.uint8],
    ) -> None:
        _ = sources
        noise_std, scale, weight, sharpness = parameters
        k0, k1, split = key
        d = len(dim)
        linear = kind >= PLAY_LINUCB
        words = np.empty(2 * LANES, np.uint64)
        optimal = np.empty(LANES, np.uint8)
        draws = draws_row(dim)
        for first in range(0, index.size, LANES):
            some = rows[first : first + LANES]
            for lane in range(LANES):  # a last block that is short is filled up with its first trajectory
                i = U(index[first + lane if lane < some.size else first])
                words[lane], words[LANES + lane] = i & U(0xFFFFFFFF), i >> U(32)
            environment_rows(S, n_actions, dim, k0, k1, split, words)
            optimal_lanes(S, n_actions, dim, optimal)
            for lane in range(some.size):
                optimal_action[some[lane]] = optimal[lane]
            if linear:
                start_linear(S, n_actions, dim, scale)
            elif kind == PLAY_EMPIRICAL_MEAN:
                start_empirical_mean(S, n_actions, dim)
            elif kind == PLAY_OPTIMAL:
                for w in range(W):
                    S[row(d + ACTION) + w] = np.float32(optimal[w])
            for t in range(action.shape[1]):
                slot, quarter = t % CHUNK, t % 4
                if quarter == 0:
                    normal_rows(S, rewards_row(dim) + row(slot), t // 4, k0, k1, split | TAG_REWARD, words)
                    if kind == PLAY_THOMPSON:
                        for k in range(d):
                            block = t // 4 * d + k
                            normal_rows(S, draws + row(4 * k), block, k0, k1, split | TAG_NORMAL, words)
                    elif kind in (PLAY_UNIFORM, PLAY_SOFT_LINUCB):
                        uniform_rows(S, draws, t // 4, k0, k1, split | TAG_UNIFORM, words)
                if kind == PLAY_LINUCB:
                    select_index(S, n_actions, dim, weight)
                elif kind == PLAY_THOMPSON:
                    select_thompson(S, n_actions, dim, weight, draws + row(quarter * d))
                elif kind == PLAY_SOFT_LINUCB:
                    select_soft_index(S, n_actions, dim, weight, sharpness, draws + row(quarter))
                elif kind == PLAY_UNIFORM:
                    select_uniform(S, n_actions, dim, draws + row(quarter))
                elif kind == PLAY_EMPIRICAL_MEAN:
                    select_index(S, n_actions, dim, _ZERO)
                if linear:
                    pull_linear(S, n_actions, dim, noise_std, slot)
                    update_linear(S, n_actions, dim, kind)
                else:
                    pull(S, n_actions, dim, noise_std, slot)
                    if kind == PLAY_EMPIRICAL_MEAN:
                        update_empirical_mean(S, n_actions, dim, slot)
                if slot == CHUNK - 1 or t == action.shape[1] - 1:
                    write_back(S, dim, t - slot, some, action, reward)

    return rollout


# numba's cache watches this file only; what it inlines from the others must be part of the key too
rollout = _compile(zlib.crc32(b"".join(Path(str(module.__file__)).read_bytes() for module in (streams, lanes))))
