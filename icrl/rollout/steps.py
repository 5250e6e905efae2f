"""The parts of a round, for W lanes at once: what algorithms know, how they choose, what a play is and teaches.

Linear algorithms keep a square root of A_t^-1 = S S' (A_t = ridge I + sum a a') only by its image on some vectors x:
factors F_x = S' x, means m_x = <x, w_t> and, where asked for, squared widths q_x = |F_x|^2 = x' A_t^-1 x. Where an
action j is played they move by Potter's square-root step: phi = F_j, c = F_x phi, k = 1 / (1 + |phi|^2),
m_x += c k (r - m_j), F_x -= c phi' k / (1 + sqrt k). With a fixed action set the vectors are the actions.

Shapes: W lanes, A actions, d dim.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit
from numba.cpython.unsafe.tuple import tuple_setitem

from icrl.rollout.lanes import (
    ACTION,
    BERNOULLI,
    BEST,
    COUNT,
    MEAN,
    SHRINK,
    SQUARE,
    STEP,
    TOTAL,
    TRUTH,
    Dim,
    Indices,
    Offset,
    Rows,
    U,
    W,
    rewards_row,
    row,
    table,
)
from icrl.streams import exp_nonpositive

Real = Any  # np.float32 inside compiled code
Action = npt.NDArray[np.uint8]
FEW = 32
"""Most actions that are compared with the played one rather than looked up."""
GROUP = 5
"""Actions that are compared in one pass."""

HELD = 8
"""Largest dim whose factors are held in registers; there are 32, and compiling takes minutes for many."""
with_item: Any = tuple_setitem
"""(tuple, k, value) -> the tuple with another item k, inside compiled code."""

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


@njit(forceinline=True)
def seen(truth: Real, noise: Real, noise_std: Real, law: int) -> Real:
    """The reward of an action with this mean: as `icrl.envs.rewards`."""
    if law == BERNOULLI:
        return _ONE if noise < truth else _ZERO
    return truth + noise_std * noise


@njit(forceinline=True)
def among(S: Rows, source: Offset, w: Offset, offset: Real, value: Real) -> Real:
    """Row number `offset` of the GROUP rows from `source`, lane w; `value` where it is none of them."""
    for a in range(GROUP):
        other = S[source + row(a) + w]
        value = other if offset == np.float32(a) else value
    return value


@njit(nogil=True)
def pick(S: Rows, n_actions: int, dim: Dim, linear: int) -> None:
    """Of the tables' rows of ACTION: TRUTH into TOTAL and, if `linear`, the factors into phi and MEAN into STEP.

    Many actions are gathered lane by lane, few are compared with ACTION one by one, GROUP in a pass: then a vector
    of lanes is picked at once. The last pass may read up to GROUP - 1 rows behind a table's end, and picks none.
    """
    d = len(dim)
    action, step, total = row(d + ACTION), row(d + STEP), row(d + TOTAL)
    factors, means, _ = tables(dim, n_actions)
    truths, table_rows = table(dim, n_actions, d + TRUTH), row(n_actions)
    if n_actions > FEW:
        for w in range(W):
            played = row(np.int32(S[action + w])) + w
            S[total + w] = S[truths + played]
            if linear:
                S[step + w] = S[means + played]
                for k in range(d):
                    S[row(k) + w] = S[factors + U(k) * table_rows + played]
        return
    for first in range(0, n_actions, GROUP):
        at, number = row(first), np.float32(first)
        if not linear:
            for w in range(W):
                S[total + w] = among(S, truths + at, w, S[action + w] - number, S[total + w])
        else:
            for w in range(W):
                offset, truth, mean = S[action + w] - number, S[total + w], S[step + w]
                S[total + w] = among(S, truths + at, w, offset, truth)
                S[step + w] = among(S, means + at, w, offset, mean)
            for k in range(d):  # one row at a time: ACTION lies between those that are written
                source = factors + U(k) * table_rows + at
                for w in range(W):
                    S[row(k) + w] = among(S, source, w, S[action + w] - number, S[row(k) + w])


@njit(nogil=True)
def pull(S: Rows, n_actions: int, dim: Dim, noise_std: Real, law: int, linear: int, t: int) -> None:
    """Play ACTION: round t's noise becomes a reward; if `linear`, what is learnt from: phi = F_j, STEP = r - m_j."""
    d = len(dim)
    step, total, rewards = row(d + STEP), row(d + TOTAL), rewards_row(dim, t)
    pick(S, n_actions, dim, linear)
    for w in range(W):
        got = seen(S[total + w], S[rewards + w], noise_std, law)
        S[rewards + w] = got
        S[step + w] = got - S[step + w]


@njit(nogil=True)
def write(S: Rows, dim: Dim, t: int, to: Indices, action: Action, reward: Rows) -> None:
    """ACTION and the reward of round t of every lane into uint8[B T] and float32[B T], at to[w] + t."""
    played, rewards = row(len(dim) + ACTION), rewards_row(dim, t)
    for w in range(W):
        at = to[w] + U(t)
        action[at] = np.uint8(np.int32(S[played + w]))
        reward[at] = S[rewards + w]


@njit(nogil=True, error_model="numpy")
def gains(S: Rows, dim: Dim) -> None:
    """From phi and STEP = r - m_j: STEP = k (r - m_j), SHRINK = k / (1 + sqrt k)."""
    d = len(dim)
    step, shrink = row(d + STEP), row(d + SHRINK)
    for w in range(W):
        square = _ZERO
        for k in range(d):
            square += S[row(k) + w] * S[row(k) + w]
        gain = _ONE / (_ONE + square)
        S[step + w] = gain * S[step + w]
        S[shrink + w] = gain / (_ONE + np.sqrt(gain))


@njit(forceinline=True)
def learn(
    S: Rows, dim: Dim, w: Offset, factors: Offset, table_rows: Offset, means: Offset, z: Offset
) -> tuple[Real, Real, Real]:
    """Potter's step for one vector of lane w, after `gains`: its mean, squared width and F z.

    `factors` and `means` are where its rows start; what a caller does not use of the results is not computed. Factors
    and phi are held in registers: they would be loaded again after every store, which might have changed them.
    """
    d = len(dim)
    step, shrink = row(d + STEP), row(d + SHRINK)
    c = _ZERO
    old, phi = dim, dim
    for k in range(d):
        if d <= HELD:
            old = with_item(old, k, S[factors + U(k) * table_rows + w])
            phi = with_item(phi, k, S[row(k) + w])
            c += old[k] * phi[k]
        else:
            c += S[factors + U(k) * table_rows + w] * S[row(k) + w]
    mean = S[means + w] + c * S[step + w]
    c *= S[shrink + w]
    square, noise = _ZERO, _ZERO
    for k in range(d):
        f = old[k] - c * phi[k] if d <= HELD else S[factors + U(k) * table_rows + w] - c * S[row(k) + w]
        S[factors + U(k) * table_rows + w] = f
        square += f * f
        noise += f * S[z + row(k) + w]
    S[means + w] = mean
    return mean, square, noise


@njit(nogil=True)
def learn_squares(S: Rows, n_actions: int, dim: Dim) -> None:
    """Potter's step for every action, with its squared width."""
    factors, means, squares = tables(dim, n_actions)
    gains(S, dim)
    for a in range(n_actions):
        at = row(a)
        for w in range(W):
            _, square, _ = learn(S, dim, w, factors + at, row(n_actions), means + at, U(0))
            S[squares + at + w] = square


@njit(nogil=True)
def learn_select_index(S: Rows, n_actions: int, dim: Dim, confidence: Real) -> None:
    """Potter's step for every action and `select_index` for the next round in one pass; no square is kept."""
    d = len(dim)
    best, action = row(d + BEST), row(d + ACTION)
    factors, means, _ = tables(dim, n_actions)
    gains(S, dim)
    for w in range(W):
        S[best + w] = -_INFINITY
    for a in range(n_actions):
        at = row(a)
        number = np.float32(a)
        for w in range(W):
            best_w, action_w = S[best + w], S[action + w]
            mean, square, _ = learn(S, dim, w, factors + at, row(n_actions), means + at, U(0))
            value = mean + confidence * np.sqrt(square)
            better = value > best_w
            S[best + w] = value if better else best_w
            S[action + w] = number if better else action_w


@njit(nogil=True)
def learn_select_thompson(S: Rows, n_actions: int, dim: Dim, scale: Real, z: Offset) -> None:
    """Potter's step for every action and `select_thompson` for the next round in one pass."""
    d = len(dim)
    best, action = row(d + BEST), row(d + ACTION)
    factors, means, _ = tables(dim, n_actions)
    gains(S, dim)
    for w in range(W):
        S[best + w] = -_INFINITY
    for a in range(n_actions):
        at = row(a)
        number = np.float32(a)
        for w in range(W):
            best_w, action_w = S[best + w], S[action + w]
            mean, _, noise = learn(S, dim, w, factors + at, row(n_actions), means + at, z)
            value = mean + scale * noise
            better = value > best_w
            S[best + w] = value if better else best_w
            S[action + w] = number if better else action_w


@njit(nogil=True, error_model="numpy")
def learn_empirical_mean(S: Rows, n_actions: int, dim: Dim, t: int) -> None:
    """Count the reward of round t into the mean of ACTION."""
    reward, action = rewards_row(dim, t), row(len(dim) + ACTION)
    sums, means, _ = tables(dim, n_actions)
    counts = table(dim, n_actions, len(dim) + COUNT)
    for w in range(W):
        played = row(np.int32(S[action + w])) + w
        S[sums + played] += S[reward + w]
        S[counts + played] += _ONE
        S[means + played] = S[sums + played] / S[counts + played]
