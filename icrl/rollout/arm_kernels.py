"""Multi-armed bandits, fused and compiled: blocks of W trajectories run in lockstep as the lanes of vectors.

The workspace is one of `lanes`, with rows of its own:

    BEST, ACTION        the largest value so far and its action (as a float)
    rewards     4       noise of 4 rounds, which they turn into rewards
    draws       4 A     the algorithm's random numbers: normals of 4 rounds, uniforms of 4 rounds, one action's betas
    tables      5 A     TRUTH (the means), SUM and COUNT of rewards, MEAN and WIDTH of the index

The index algorithms play argmax MEAN_a + c_t WIDTH_a: with s_a and N_a the rewards' sum and count, MEAN = s / (ridge +
N) and WIDTH = weight / sqrt(ridge + N); ridge 0 means that each action is played once first. Gaussian Thompson sampling
puts a normal in the place of c_t. Its Beta counterpart keeps 1 + s_a in SUM and 1 + N_a - s_a in COUNT.

Shapes: n trajectories, W lanes, T rounds, A actions.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from icrl import gammas, streams
from icrl.gammas import beta_finish, candidate, squeezed
from icrl.rollout import lanes
from icrl.rollout.lanes import (
    LANES,
    PITCH,
    TAG_ENVIRONMENT,
    TAG_NORMAL,
    TAG_REWARD,
    TAG_UNIFORM,
    Indices,
    Offset,
    Rows,
    U,
    W,
    Word,
    normal_rows,
    row,
    uniform_rows,
)
from icrl.streams import USE_GAMMA, USE_NORMAL, USE_UNIFORM, Stream, normal_pair

PLAY_UNIFORM, PLAY_OPTIMAL, PLAY_INDEX, PLAY_EPSILON_GREEDY, PLAY_GAUSSIAN_THOMPSON, PLAY_BETA_THOMPSON = range(6)
"""Algorithms, as the kernel knows them."""

BERNOULLI, GAUSSIAN = range(2)
"""Laws of the rewards, as the kernel knows them."""

TRUTH, SUM, COUNT, MEAN, WIDTH = range(5)
TABLES = 5

TAG_ENVIRONMENT_NORMAL = U(USE_NORMAL << 8 | Stream.ENVIRONMENT)
TAG_REWARD_UNIFORM = U(USE_UNIFORM << 8 | Stream.REWARD)
TAG_GAMMA = U(USE_GAMMA << 8 | Stream.ALGORITHM)

Actions = npt.NDArray[np.uint8]
Real = Any  # np.float32 inside compiled code
_ZERO = np.float32(0)
_ONE = np.float32(1)
_INFINITY = np.float32(np.inf)

BEST = U(0)
ACTION = PITCH
REWARDS = U(2) * PITCH
DRAWS = U(6) * PITCH
"""Where these rows start."""


def workspace(n_actions: int) -> Rows:
    """A workspace of zeros for blocks of this size."""
    size = (6 + (4 + TABLES) * n_actions) * int(PITCH)
    raw = np.zeros(size + 15, np.float32)
    skip = -(raw.ctypes.data // 4) % 16  # vectors that straddle two cache lines are half as fast
    return raw[skip : skip + size]


@njit(forceinline=True)
def table(n_actions: int, number: int) -> Offset:
    """Where table `number` starts."""
    return DRAWS + row((4 + number) * n_actions)


@njit(nogil=True)
def environment_rows(
    S: Rows, n_actions: int, law: int, prior_std: Real, k0: Word, k1: Word, split: Word, index: Indices
) -> None:
    """Fresh environments: the means into TRUTH."""
    truths = table(n_actions, TRUTH)
    for block in range((n_actions + 3) // 4):
        if law == BERNOULLI:
            uniform_rows(S, DRAWS, block, k0, k1, split | TAG_ENVIRONMENT, index)
        else:
            normal_rows(S, DRAWS, block, k0, k1, split | TAG_ENVIRONMENT_NORMAL, index)
        for a in range(4 * block, min(4 * block + 4, n_actions)):
            source, target = DRAWS + row(a - 4 * block), truths + row(a)
            for w in range(W):
                S[target + w] = S[source + w] if law == BERNOULLI else prior_std * S[source + w]


@njit(nogil=True)
def select_largest(S: Rows, n_actions: int, values: Offset) -> None:
    """ACTION = argmax of the table that starts at `values`; the lowest action wins ties."""
    for w in range(W):
        S[BEST + w] = -_INFINITY
    for a in range(n_actions):
        at = values + row(a)
        number = np.float32(a)
        for w in range(W):
            value, best_w, action_w = S[at + w], S[BEST + w], S[ACTION + w]
            better = value > best_w
            S[BEST + w] = value if better else best_w
            S[ACTION + w] = number if better else action_w


@njit(nogil=True)
def start(S: Rows, n_actions: int, first: Real, ridge: Real, weight: Real) -> None:
    """No rewards yet; SUM and COUNT start at `first`."""
    sums, counts = table(n_actions, SUM), table(n_actions, COUNT)
    means, widths = table(n_actions, MEAN), table(n_actions, WIDTH)
    known = ridge > _ZERO
    mean = _ZERO if known else _INFINITY
    width = weight / np.sqrt(ridge) if known else _ZERO
    for w in range(row(n_actions)):
        S[sums + w] = first
        S[counts + w] = first
        S[means + w] = mean
        S[widths + w] = width


@njit(nogil=True)
def select_index(S: Rows, n_actions: int, confidence: Real) -> None:
    """ACTION = argmax MEAN + confidence WIDTH; the lowest action wins ties."""
    means, widths = table(n_actions, MEAN), table(n_actions, WIDTH)
    for w in range(W):
        S[BEST + w] = -_INFINITY
    for a in range(n_actions):
        at = row(a)
        number = np.float32(a)
        for w in range(W):
            value = S[means + at + w] + confidence * S[widths + at + w]
            best_w, action_w = S[BEST + w], S[ACTION + w]
            better = value > best_w
            S[BEST + w] = value if better else best_w
            S[ACTION + w] = number if better else action_w


@njit(nogil=True)
def select_gaussian_thompson(S: Rows, n_actions: int, z: Offset) -> None:
    """ACTION = argmax MEAN + z WIDTH: a posterior sample's best action; z is where A rows of normals start."""
    means, widths = table(n_actions, MEAN), table(n_actions, WIDTH)
    for w in range(W):
        S[BEST + w] = -_INFINITY
    for a in range(n_actions):
        at = row(a)
        number = np.float32(a)
        for w in range(W):
            value = S[means + at + w] + S[widths + at + w] * S[z + at + w]
            best_w, action_w = S[BEST + w], S[ACTION + w]
            better = value > best_w
            S[BEST + w] = value if better else best_w
            S[ACTION + w] = number if better else action_w


@njit(nogil=True, error_model="numpy")
def select_beta_thompson(S: Rows, n_actions: int, t: int, k0: Word, k1: Word, tag: Word, index: Indices) -> None:
    """ACTION = argmax of Beta(SUM, COUNT) draws, those of `gammas.betas`.

    Attempt 0 is made for all lanes at once and kept where both squeezes accept it; the rest, one draw in five, is
    finished one by one.
    """
    sums, counts = table(n_actions, SUM), table(n_actions, COUNT)
    z0, z1, u0, u1 = DRAWS, DRAWS + PITCH, DRAWS + U(2) * PITCH, DRAWS + U(3) * PITCH
    drawn = table(n_actions, MEAN)  # not used otherwise
    for a in range(n_actions):
        at = row(a)
        uniform_rows(S, DRAWS, t * n_actions + a, k0, k1, tag, index)
        for w in range(W):
            first, second = normal_pair(S[z0 + w], S[z1 + w])
            S[z0 + w] = first
            S[z1 + w] = second
        for w in range(W):
            x, y = candidate(S[sums + at + w], S[z0 + w]), candidate(S[counts + at + w], S[z1 + w])
            kept = (x > _ZERO) & (y > _ZERO) & squeezed(S[z0 + w], S[u0 + w]) & squeezed(S[z1 + w], S[u1 + w])
            S[drawn + at + w] = x / (x + y) if kept else -_ONE
        for w in range(W):
            if S[drawn + at + w] < _ZERO:
                S[drawn + at + w] = beta_finish(
                    S[sums + at + w],
                    S[counts + at + w],
                    S[z0 + w],
                    S[z1 + w],
                    S[u0 + w],
                    S[u1 + w],
                    U(t * n_actions + a),
                    tag,
                    index[w],
                    index[W + w],
                    k0,
                    k1,
                )
    select_largest(S, n_actions, drawn)


@njit(nogil=True)
def select_uniform(S: Rows, n_actions: int, u: Offset) -> None:
    """ACTION = floor(u A)."""
    count = np.float32(n_actions)
    for w in range(W):
        S[ACTION + w] = np.float32(np.int32(S[u + w] * count))


@njit(nogil=True)
def explore(S: Rows, n_actions: int, epsilon: Real, per_unit: Real, u: Offset) -> None:
    """ACTION = floor(u A / epsilon) where u < epsilon."""
    last = np.float32(n_actions - 1)
    for w in range(W):
        u_w, greedy = S[u + w], S[ACTION + w]
        explored = min(np.float32(np.int32(u_w * per_unit)), last)
        S[ACTION + w] = explored if u_w < epsilon else greedy


@njit(nogil=True)
def pull(
    S: Rows, n_actions: int, law: int, noise_std: Real, t: int, to: Indices, action: Actions, rewards: Rows
) -> None:
    """Play ACTION: the noise of round t becomes a reward; both go to uint8[B T] and float32[B T], at to[w] + t."""
    reward, truths = REWARDS + row(t % 4), table(n_actions, TRUTH)
    for w in range(W):
        played = np.int32(S[ACTION + w])
        truth, noise = S[truths + row(played) + w], S[reward + w]
        won = _ONE if noise < truth else _ZERO
        seen = won if law == BERNOULLI else truth + noise_std * noise
        S[reward + w] = seen
        at = to[w] + U(t)
        action[at] = np.uint8(played)
        rewards[at] = seen


@njit(nogil=True, error_model="numpy")
def update_index(S: Rows, n_actions: int, ridge: Real, weight: Real, t: int) -> None:
    """Count the reward of round t into SUM, COUNT, MEAN and WIDTH of ACTION."""
    reward = REWARDS + row(t % 4)
    sums, counts = table(n_actions, SUM), table(n_actions, COUNT)
    means, widths = table(n_actions, MEAN), table(n_actions, WIDTH)
    for w in range(W):
        played = row(np.int32(S[ACTION + w])) + w
        total, count = S[sums + played] + S[reward + w], S[counts + played] + _ONE
        S[sums + played] = total
        S[counts + played] = count
        S[means + played] = total / (ridge + count)
        S[widths + played] = weight / np.sqrt(ridge + count)


@njit(nogil=True)
def update_beta(S: Rows, n_actions: int, t: int) -> None:
    """Count the reward of round t into the parameters of ACTION."""
    reward, sums, counts = REWARDS + row(t % 4), table(n_actions, SUM), table(n_actions, COUNT)
    for w in range(W):
        played = row(np.int32(S[ACTION + w])) + w
        seen = S[reward + w]
        S[sums + played] += seen
        S[counts + played] += _ONE - seen


def _compile(sources: int) -> Callable[..., None]:
    @njit(cache=True, nogil=True)
    def rollout(
        kind: int,
        law: int,
        n_actions: int,
        parameters: Rows,
        confidence: Rows,
        key: Indices,
        index: npt.NDArray[np.int64],
        rows: npt.NDArray[np.int64],
        S: Rows,
        action: Actions,
        reward: Rows,
        optimal_action: npt.NDArray[np.uint8],
    ) -> None:
        _ = sources
        prior_std, noise_std, ridge, weight, epsilon, per_unit = parameters
        k0, k1, split = key
        T = action.shape[1]
        words, to = np.empty(2 * LANES, np.uint64), np.empty(LANES, np.uint64)
        actions, rewards = action.reshape(-1), reward.reshape(-1)
        for first in range(0, index.size, LANES):
            for lane in range(LANES):  # a last block that is short is filled up with its first trajectory
                place = first + lane if first + lane < index.size else first
                i = U(index[place])
                to[lane] = U(rows[place]) * U(T)
                words[lane], words[LANES + lane] = i & U(0xFFFFFFFF), i >> U(32)
            environment_rows(S, n_actions, law, prior_std, k0, k1, split, words)
            start(S, n_actions, _ONE if kind == PLAY_BETA_THOMPSON else _ZERO, ridge, weight)
            select_largest(S, n_actions, table(n_actions, TRUTH))  # `optimal` leaves ACTION as it is
            for lane in range(min(LANES, index.size - first)):
                optimal_action[rows[first + lane]] = np.uint8(np.int32(S[ACTION + U(lane)]))
            for t in range(T):
                quarter = t % 4
                if quarter == 0:
                    if law == BERNOULLI:
                        uniform_rows(S, REWARDS, t // 4, k0, k1, split | TAG_REWARD_UNIFORM, words)
                    else:
                        normal_rows(S, REWARDS, t // 4, k0, k1, split | TAG_REWARD, words)
                    if kind in (PLAY_UNIFORM, PLAY_EPSILON_GREEDY):
                        uniform_rows(S, DRAWS, t // 4, k0, k1, split | TAG_UNIFORM, words)
                    elif kind == PLAY_GAUSSIAN_THOMPSON:
                        for a in range(n_actions):
                            block = t // 4 * n_actions + a
                            normal_rows(S, DRAWS + row(4 * a), block, k0, k1, split | TAG_NORMAL, words)
                if kind == PLAY_UNIFORM:
                    select_uniform(S, n_actions, DRAWS + row(quarter))
                elif kind == PLAY_INDEX:
                    select_index(S, n_actions, confidence[t])
                elif kind == PLAY_EPSILON_GREEDY:
                    select_index(S, n_actions, _ZERO)
                    explore(S, n_actions, epsilon, per_unit, DRAWS + row(quarter))
                elif kind == PLAY_GAUSSIAN_THOMPSON:
                    select_gaussian_thompson(S, n_actions, DRAWS + row(quarter * n_actions))
                elif kind == PLAY_BETA_THOMPSON:
                    select_beta_thompson(S, n_actions, t, k0, k1, split | TAG_GAMMA, words)
                pull(S, n_actions, law, noise_std, t, to, actions, rewards)
                if kind == PLAY_BETA_THOMPSON:
                    update_beta(S, n_actions, t)
                elif kind >= PLAY_INDEX:
                    update_index(S, n_actions, ridge, weight, t)

    return rollout


# numba's cache watches this file only; what it inlines from the others must be part of the key too
rollout = _compile(zlib.crc32(b"".join(Path(str(module.__file__)).read_bytes() for module in (streams, gammas, lanes))))
