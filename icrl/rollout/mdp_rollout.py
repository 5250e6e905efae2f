"""Tabular MDP x algorithm, fused and compiled, one trajectory at a time.

Environment, transitions and planning are those of `icrl.envs` and `icrl.algorithms`, function by function, so that the
general loop plays the same trajectories. A trajectory depends on its index alone: any partition and any order of
indices gives the same bytes.

Shapes: n trajectories, T = K H rounds, S states, A actions, H steps, K episodes; L = 1 for stationary MDPs, else H.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

from icrl import gammas, streams
from icrl.algorithms import psrl, softmax, ucb_vi
from icrl.algorithms.psrl import learn, plan_layer
from icrl.algorithms.softmax import pick, softmax_weights
from icrl.algorithms.ucb_vi import forget, plan_optimistically
from icrl.envs import mdp_kernels
from icrl.envs.mdp_kernels import (
    Array,
    draw_rewards,
    draw_transitions,
    draw_uniforms,
    next_state,
    plan,
    plan_known,
    sources,
)
from icrl.gammas import whole_gammas
from icrl.streams import USE_UNIFORM, Stream

PLAY_UNIFORM, PLAY_OPTIMAL, PLAY_UCB_VI, PLAY_SOFT_UCB_VI, PLAY_PSRL = range(5)
"""Algorithms, as the kernel knows them."""

U = np.uint64
TAG_ENVIRONMENT = U(USE_UNIFORM << 8 | Stream.ENVIRONMENT)
TAG_REWARD = U(USE_UNIFORM << 8 | Stream.REWARD)
TAG_TRANSITION = U(USE_UNIFORM << 8 | Stream.TRANSITION)
TAG_UNIFORM = U(USE_UNIFORM << 8 | Stream.ALGORITHM)
TAG_ALGORITHM = U(Stream.ALGORITHM)

_ONE, _ZERO = np.float32(1), np.float32(0)
_LOW, _32 = U(0xFFFFFFFF), U(32)


@njit(nogil=True)
def greedy(values: Array) -> int:
    """argmax of float64[A]; the lowest action wins ties."""
    action = 0
    for a in range(1, values.size):
        if values[a] > values[action]:
            action = a
    return action


def _compile(stamp: int) -> Callable[..., None]:
    @njit(cache=True, nogil=True)
    def rollout(
        kind: int,
        sizes: tuple[int, int, int, int, int],
        laws: tuple[int, bool, int],
        moves: Array,
        scratch: Array,
        bonus: Array,
        temperature: float,
        key: Array,
        index: Array,
        rows: Array,
        action: Array,
        reward: Array,
        state: Array,
        optimal_action: Array,
        optimal_policy: Array,
    ) -> None:
        """Trajectories `index` into `rows` of the last five, uint8 but for rewards; `icrl.rollout.mdp` has the rest."""
        _ = stamp
        L, H, K, S, A = sizes
        reward_kind, bernoulli, start = laws
        k0, k1, split = key
        T, known = K * H, moves.size > 0
        # the environment
        weights = np.empty((0, S, A, S) if known else (L, S, A, S), np.float32)
        rewards, totals = np.empty((L, S, A), np.float32), np.empty((L, S * A))
        columns, best, optimal = np.empty((S, S * A)), np.empty(S), np.empty((H, S, A))
        noise, fate, luck = np.empty(T, np.float32), np.empty(T, np.float32), np.empty(T, np.float32)
        # UCB-VI
        learns = kind in (PLAY_UCB_VI, PLAY_SOFT_UCB_VI)
        table = (H, S, A) if learns else (0, S, A)
        counts, sums, values = np.empty(table, np.int64), np.empty(table), np.empty(table)
        bounds, following, choice = np.empty((H, S)), np.zeros((S, A)), np.empty(A)
        states, actions = np.zeros((H, K), np.uint8), np.zeros((H, K), np.uint8)
        # PSRL
        samples = kind == PLAY_PSRL
        cells = S * A * (S + 2) if samples else 0
        stride = cells + -cells % 4
        posterior, gamma, masses = np.empty((L, cells), np.float32), np.empty(cells, np.float32), np.empty(S * A)
        seen, drawn, policy = np.empty((L, S, A), np.float32), np.empty((S, A), np.float32), np.empty((H, S), np.uint8)
        for i in range(index.size):
            row = rows[i]
            low, high = U(index[i]) & _LOW, U(index[i]) >> _32
            draw_uniforms(scratch, split | TAG_ENVIRONMENT, low, high, k0, k1)
            draw_transitions(scratch, weights.reshape(weights.size))
            draw_rewards(scratch[weights.size :], rewards, reward_kind)
            if known:
                plan_known(moves, rewards, best, optimal, optimal_policy[row])
            else:
                plan(weights, rewards, columns, totals, best, optimal, optimal_policy[row])
            draw_uniforms(fate, split | TAG_TRANSITION, low, high, k0, k1)
            if bernoulli:
                draw_uniforms(noise, split | TAG_REWARD, low, high, k0, k1)
            if kind in (PLAY_UNIFORM, PLAY_SOFT_UCB_VI):
                draw_uniforms(luck, split | TAG_UNIFORM, low, high, k0, k1)
            if learns:
                forget(bonus, counts, sums, values, bounds)
            elif samples:
                posterior[:] = _ONE
                seen[:] = np.nan
            s, a = 0, 0
            for t in range(T):
                k, h = t // H, t % H
                if h == 0:
                    s = start if start >= 0 else int(fate[t] * np.float32(S))
                    if learns:
                        plan_optimistically(k, states, actions, counts, sums, bonus, following, values, bounds)
                    elif samples:
                        if k > 0:
                            last = slice(t - H, t)
                            learn(state[row, last], action[row, last], reward[row, last], bernoulli, posterior, seen)
                        best[:] = 0.0
                        for layer in range(L - 1, -1, -1):
                            begin = (k * L + layer) * stride
                            whole_gammas(posterior[layer], begin, split | TAG_ALGORITHM, low, high, k0, k1, gamma)
                            # all steps of a stationary MDP share one layer
                            first, final = (0, H - 1) if L == 1 else (layer, layer)
                            plan_layer(
                                gamma, seen[layer], first, final, columns, masses, drawn, optimal[0], best, policy
                            )
                elif known:
                    s = moves[s, a]
                else:
                    before = min(h - 1, L - 1)
                    s = next_state(weights[before, s, a], totals[before, s * A + a], fate[t])
                if kind == PLAY_UNIFORM:
                    a = int(luck[t] * np.float32(A))
                elif kind == PLAY_OPTIMAL:
                    a = int(optimal_policy[row, h, s])
                elif kind == PLAY_UCB_VI:
                    a = greedy(values[h, s])
                elif kind == PLAY_SOFT_UCB_VI:
                    softmax_weights(values[h, s], temperature, choice)
                    a = pick(choice, luck[t])
                else:
                    a = int(policy[h, s])
                r = rewards[min(h, L - 1), s, a]
                if bernoulli:
                    r = _ONE if noise[t] < r else _ZERO
                state[row, t], action[row, t], reward[row, t] = s, a, r
                optimal_action[row, t] = optimal_policy[row, h, s]
                if learns:
                    states[h, k], actions[h, k] = s, a
                    counts[h, s, a] += 1
                    sums[h, s, a] += np.float64(r)

    return rollout


# numba's cache watches this file only; what it inlines from the others must be part of the key too
rollout: Any = _compile(sources(streams, gammas, mdp_kernels, softmax, ucb_vi, psrl))
