"""The arithmetic of finite-horizon tabular MDPs, compiled, for one environment at a time.

Environments, algorithms that plan and compiled rollouts all call these functions, so that they agree to the last bit.
Helpers are not cached by themselves: numba's cache watches one file, and would not see that another has changed. What
is cached takes `sources` of the modules that it inlines into its key.

Shapes: S states, A actions, H steps; L = 1 for stationary MDPs, else H.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from icrl.streams import Word, exponential, philox, unit

Array = npt.NDArray[Any]
Real = Any  # np.float32 or np.float64 inside compiled code

DENSE, SPARSE = 0, 1
"""Rewards, as compiled code knows them."""

SMALLEST = np.float32(2.0**-25)
"""What a transition weight of zero becomes: the mean of the 2**-24 of probability that `exponential` rounds to 0."""

_ONE, _ZERO = np.float32(1), np.float32(0)


def sources(*modules: ModuleType) -> int:
    """A checksum of the modules' source files."""
    return zlib.crc32(b"".join(Path(str(module.__file__)).read_bytes() for module in modules))


@njit(nogil=True)
def draw_uniforms(out: Array, tag: Word, low: Word, high: Word, k0: Word, k1: Word) -> None:
    """The first uniforms of a stream into float32[n]; `tag` is the stream's `tag_word`."""
    whole = out.size // 4
    for block in range(whole):
        w0, w1, w2, w3 = philox(np.uint64(block), tag, low, high, k0, k1)
        out[4 * block], out[4 * block + 1] = unit(w0), unit(w1)
        out[4 * block + 2], out[4 * block + 3] = unit(w2), unit(w3)
    if 4 * whole < out.size:
        words = philox(np.uint64(whole), tag, low, high, k0, k1)
        for lane in range(out.size - 4 * whole):
            out[4 * whole + lane] = unit(words[lane])


@njit(nogil=True)
def draw_transitions(u: Array, weights: Array) -> None:
    """Exp(1) weights float32[n] from the uniforms u float32[n]: a row of them, normalised, is Dirichlet(1)."""
    for i in range(weights.size):
        weights[i] = max(exponential(u[i]), SMALLEST)


@njit(nogil=True)
def draw_rewards(u: Array, rewards: Array, kind: int) -> None:
    """Mean rewards float32[L, S, A] from the uniforms u: one each, or one for the goal state."""
    L, S, A = rewards.shape
    goal = np.int64(u[0] * np.float32(S)) if kind == SPARSE else -1
    n = 0
    for h in range(L):
        for s in range(S):
            for a in range(A):
                if kind == SPARSE:
                    rewards[h, s, a] = _ONE if s == goal else _ZERO
                else:
                    rewards[h, s, a] = u[n]
                    n += 1


@njit(nogil=True)
def total_of(weights: Array) -> Real:
    """The float64 sum of float32[S]."""
    total = 0.0
    for x in range(weights.size):
        total += np.float64(weights[x])
    return total


@njit(nogil=True)
def next_state(weights: Array, total: Real, u: Real) -> int:
    """The state whose cell of the cumulative weights float32[S], which sum to `total`, holds the uniform u."""
    left = np.float64(u) * total
    so_far = 0.0
    last = weights.size - 1
    for x in range(last):
        so_far += np.float64(weights[x])
        if left < so_far:
            return x
    return int(last)


@njit(nogil=True)
def transpose(weights: Array, columns: Array, totals: Array) -> None:
    """Weights float32[S, A, S'] into columns float64[S', S A], their sums over S' into totals float64[S A]."""
    S, A, _ = weights.shape
    for s in range(S):
        for a in range(A):
            total = 0.0
            for x in range(S):
                w = np.float64(weights[s, a, x])
                total += w
                columns[x, s * A + a] = w
            totals[s * A + a] = total


@njit(nogil=True)
def improve(values: Array, policy: Array, best: Array) -> None:
    """argmax and max over the actions of values float64[S, A]; the lowest action wins ties."""
    S, A = values.shape
    for s in range(S):
        top, action = values[s, 0], 0
        for a in range(1, A):
            if values[s, a] > top:
                top, action = values[s, a], a
        best[s] = top
        policy[s] = action


@njit(nogil=True, error_model="numpy")
def back_up(columns: Array, totals: Array, rewards: Array, best: Array, values: Array, policy: Array) -> None:
    """One step of backward induction: Q_h = r + P max_a Q_{h+1} into values float64[S, A].

    best float64[S] holds V_{h+1} before and V_h after. Sums over the next state run in its order for every pair: with
    the pairs side by side they fill vectors without being reordered.
    """
    S, A = values.shape
    for s in range(S):
        for a in range(A):
            values[s, a] = 0.0
    flat = values.reshape(S * A)
    for x in range(S):
        value, column = best[x], columns[x]
        for i in range(S * A):
            flat[i] += column[i] * value
    for s in range(S):
        for a in range(A):
            values[s, a] = np.float64(rewards[s, a]) + values[s, a] / totals[s * A + a]
    improve(values, policy, best)


@njit(nogil=True)
def back_up_known(moves: Array, rewards: Array, best: Array, values: Array, policy: Array) -> None:
    """The same where pair (s, a) always leads to state moves[s, a]."""
    S, A = values.shape
    for s in range(S):
        for a in range(A):
            values[s, a] = np.float64(rewards[s, a]) + best[moves[s, a]]
    improve(values, policy, best)


@njit(nogil=True)
def plan(
    weights: Array, rewards: Array, columns: Array, totals: Array, best: Array, values: Array, policy: Array
) -> None:
    """Q*_h into values float64[H, S, A], its argmax into policy uint8[H, S], by backward induction.

    weights float32[L, S, A, S], rewards float32[L, S, A]; totals float64[L, S A] is left at the sums of the weights;
    columns float64[S, S A] and best float64[S] are scratch.
    """
    L = weights.shape[0]
    best[:] = 0.0
    if L == 1:
        transpose(weights[0], columns, totals[0])
    for h in range(values.shape[0] - 1, -1, -1):
        layer = min(h, L - 1)
        if L > 1:
            transpose(weights[layer], columns, totals[layer])
        back_up(columns, totals[layer], rewards[layer], best, values[h], policy[h])


@njit(nogil=True)
def plan_known(moves: Array, rewards: Array, best: Array, values: Array, policy: Array) -> None:
    """The same for known moves int64[S, A]; rewards float32[1, S, A]."""
    best[:] = 0.0
    for h in range(values.shape[0] - 1, -1, -1):
        back_up_known(moves, rewards[0], best, values[h], policy[h])
