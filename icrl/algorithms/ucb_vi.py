"""UCB-VI, hard and soft (paper, Thm 12): optimistic value iteration before each episode.

With N_h the visits of the episodes before, b_h = bonus 2 H sqrt(log(S A T / delta) / max(N_h(s, a), 1)), delta = 1 / T,

    Q_h(s, a) = min(H, r_h(s, a) + b_h(s, a) + sum_s' P_h(s' | s, a) V_{h+1}(s')),  V_h = max_a Q_h,  V_{H+1} = 0,

r_h and P_h the means over those visits, 0 without any. Statistics are kept for each step h, also where the MDP is
stationary, as in the paper; the last step has no next state (N_H(s, a, .) = 0).

Before episode k a step holds at most k - 1 visits: sum_s' P V is the mean of V_{h+1} at the states that followed them,
and all other pairs keep Q = min(H, b(0)), or H (`unvisited: ceiling`, the same with the paper's bonus). So planning
costs H (k - 1) A instead of H S^2 A.

Shapes: B interactions, S states, A actions, H steps, K episodes.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from icrl.algorithms.base import Algorithm, Draws, choose, largest, one_hot
from icrl.algorithms.softmax import weights_of
from icrl.config import EnvironmentConfig, GridWorldConfig, MDPConfig, TabularMDPConfig, UCBVIConfig
from icrl.envs import Batch, MDPBatch, Observation, mdp_kernels
from icrl.envs.mdp_kernels import Array, sources


def bonuses(config: UCBVIConfig, environment: MDPConfig) -> npt.NDArray[np.float64]:
    """float64[K + 1]: the bonus after 0 .. K visits; infinite after none where `unvisited` is `ceiling`.

    The logarithm is rounded correctly: no libm has a say in bytes.
    """
    T, H = environment.horizon, environment.episode_length
    log = float(Decimal(environment.n_states * environment.n_actions * T * T).ln())
    visits = np.maximum(np.arange(environment.episodes + 1), 1)
    widths: npt.NDArray[np.float64] = config.bonus * (2 * H * np.sqrt(log / visits))
    if config.unvisited == "ceiling":
        widths[0] = np.inf
    return widths


@njit(nogil=True)
def forget(bonus: Array, counts: Array, sums: Array, values: Array, best: Array) -> None:
    """No visits: counts and reward sums 0, Q and V at min(H, b(0)). Shapes as in `plan_optimistically`."""
    counts[:] = 0
    sums[:] = 0.0
    start = min(np.float64(values.shape[0]), bonus[0])
    values[:] = start
    best[:] = start


@njit(nogil=True, error_model="numpy")
def plan_optimistically(
    past: int,
    states: Array,
    actions: Array,
    counts: Array,
    sums: Array,
    bonus: Array,
    following: Array,
    values: Array,
    best: Array,
) -> None:
    """Q and V after `past` episodes, from those of fewer.

    states, actions uint8[H, K]: what was visited; counts int64[H, S, A] and reward sums float64[H, S, A] over it;
    bonus float64[K + 1]; following float64[S, A]: scratch, zero before and after; values float64[H, S, A]: Q; best
    float64[H, S]: V.
    """
    H, _, A = values.shape
    ceiling = np.float64(H)
    for h in range(H - 1, -1, -1):
        if h < H - 1:
            for k in range(past):
                following[states[h, k], actions[h, k]] += best[h + 1, states[h + 1, k]]
        for k in range(past):
            s, a = states[h, k], actions[h, k]
            n = counts[h, s, a]
            values[h, s, a] = min(ceiling, (sums[h, s, a] + following[s, a]) / np.float64(n) + bonus[n])
        for k in range(past):
            s = states[h, k]
            following[s, actions[h, k]] = 0.0
            top = values[h, s, 0]
            for a in range(1, A):
                top = max(top, values[h, s, a])
            best[h, s] = top


def _compile(stamp: int) -> tuple[Callable[..., None], ...]:
    @njit(cache=True, nogil=True)
    def forget_rows(bonus: Array, counts: Array, sums: Array, values: Array, best: Array) -> None:
        _ = stamp
        for row in range(len(values)):
            forget(bonus, counts[row], sums[row], values[row], best[row])

    @njit(cache=True, nogil=True)
    def plan_rows(
        past: int, states: Array, actions: Array, counts: Array, sums: Array, bonus: Array, values: Array, best: Array
    ) -> None:
        _ = stamp
        following = np.zeros(values.shape[2:])
        for row in range(len(values)):
            plan_optimistically(
                past, states[row], actions[row], counts[row], sums[row], bonus, following, values[row], best[row]
            )

    return forget_rows, plan_rows


_forget: Any
_plan: Any
_forget, _plan = _compile(sources(mdp_kernels))


class UCBVI(Algorithm):
    """Temperature 0 plays the largest Q_h(s_t, .) (the lowest action wins ties), above 0 softmax(Q / temperature)."""

    name = "ucb_vi"

    def __init__(self, config: UCBVIConfig, environment: EnvironmentConfig) -> None:
        assert isinstance(environment, TabularMDPConfig | GridWorldConfig)
        self.config = config
        self._environment = environment
        self._bonus = bonuses(config, environment)

    def reset(self, environments: Batch) -> None:
        assert isinstance(environments, MDPBatch)
        B, H, S, A = environments.optimal_values.shape
        self._row = np.arange(B)
        self._states = np.zeros((B, H, self._environment.episodes), np.uint8)
        self._actions = np.zeros_like(self._states)
        self._counts = np.empty((B, H, S, A), np.int64)
        self._sums = np.empty((B, H, S, A))
        self._values, self._best = np.empty((B, H, S, A)), np.empty((B, H, S))
        _forget(self._bonus, self._counts, self._sums, self._values, self._best)
        self._round = 0

    @property
    def values(self) -> npt.NDArray[np.float64]:
        """float64[B, H, S, A]: Q of the current episode."""
        return self._values

    def observe(self, observation: Observation) -> None:
        assert observation is not None
        episode, self._step = divmod(self._round, self._environment.episode_length)
        self._state = observation.astype(np.int64)
        self._states[:, self._step, episode] = self._state
        if self._step == 0:
            log = (self._states, self._actions, self._counts, self._sums)
            _plan(episode, *log, self._bonus, self._values, self._best)

    def _current(self) -> npt.NDArray[np.float64]:
        """float64[B, A]: Q_h(s_t, .)."""
        values: npt.NDArray[np.float64] = self._values[self._row, self._step, self._state]
        return values

    def probabilities(self) -> npt.NDArray[np.float64]:
        values = self._current()
        if self.config.temperature == 0:
            return one_hot(largest(values), values.shape[1])
        weights = weights_of(values, self.config.temperature)
        probabilities: npt.NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
        return probabilities

    def act(self, draws: Draws) -> npt.NDArray[np.int64]:
        if self.config.temperature == 0:
            return largest(self._current())
        return choose(weights_of(self._current(), self.config.temperature), draws.uniform)

    def update(self, action: npt.NDArray[np.int64], reward: npt.NDArray[np.float32]) -> None:
        at = (self._row, self._step, self._state, action)
        self._counts[at] += 1
        self._sums[at] += reward
        self._actions[:, self._step, self._round // self._environment.episode_length] = action
        self._round += 1
