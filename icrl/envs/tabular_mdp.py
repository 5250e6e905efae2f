"""Finite-horizon tabular MDPs, and Dark Room as one of them; compiled, one environment at a time.

A round t = 0 .. K H - 1 is step h = t mod H of episode t // H. The state of round t is drawn at uniform t of stream
TRANSITION: from the start law where h = 0, else from P_{h-1}(. | s, a) by inverse CDF.

Shapes: B environments, S states, A actions, H steps, K episodes; L = 1 for stationary MDPs, else H.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from icrl import streams
from icrl.config import GridWorldConfig, MDPConfig, TabularMDPConfig
from icrl.envs.base import Observation
from icrl.streams import USE_UNIFORM, Split, Stream, Word, exponential, philox, unit

CHUNK = 64
"""Rounds whose random numbers are drawn at once."""

Array = npt.NDArray[Any]
Real = Any  # np.float32 inside compiled code

_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)
DENSE, SPARSE = 0, 1
"""Rewards, as compiled code knows them."""


@dataclass(frozen=True)
class MDPBatch:
    """B environments drawn from the prior, with their optimal values."""

    index: npt.NDArray[np.int64]
    """int64[B]: global trajectory index."""
    weights: npt.NDArray[np.float32]
    """float32[B, L, S, A, S]: P_h(s' | s, a) is proportional to it; Exp(1) draws, so that rows are Dirichlet(1)."""
    rewards: npt.NDArray[np.float32]
    """float32[B, L, S, A]: mean rewards r_h(s, a) in [0, 1]."""
    optimal_values: npt.NDArray[np.float64]
    """float64[B, H, S, A]: Q*_h(s, a)."""
    optimal_policy: npt.NDArray[np.uint8]
    """uint8[B, H, S]: argmax_a Q*_h(s, a); the lowest action wins ties."""

    @property
    def n_actions(self) -> int:
        """A."""
        return int(self.rewards.shape[3])

    @property
    def transitions(self) -> npt.NDArray[np.float64]:
        """float64[B, L, S, A, S]: P_h(s' | s, a)."""
        weights = self.weights.astype(np.float64)
        probabilities: npt.NDArray[np.float64] = weights / weights.sum(axis=-1, keepdims=True)
        return probabilities


@njit(cache=True, forceinline=True)
def uniform_at(position: int, tag: Word, low: Word, high: Word, k0: Word, k1: Word) -> Real:
    """Uniform number `position` of a stream; `tag` is its `tag_word`."""
    words = philox(np.uint64(position >> 2), tag, low, high, k0, k1)
    lane = position & 3
    return unit(words[0] if lane == 0 else words[1] if lane == 1 else words[2] if lane == 2 else words[3])


@njit(cache=True)
def draw_uniforms(out: Array, tag: Word, low: Word, high: Word, k0: Word, k1: Word) -> None:
    """The first uniforms of a stream into float32[n]."""
    for block in range((out.size + 3) // 4):
        words = philox(np.uint64(block), tag, low, high, k0, k1)
        for lane in range(min(4, out.size - 4 * block)):
            out[4 * block + lane] = unit(words[lane])


@njit(cache=True)
def draw_transitions(u: Array, weights: Array) -> int:
    """Exp(1) weights float32[L, S, A, S] from the first uniforms u; returns how many were used."""
    n = 0
    L, S, A, _ = weights.shape
    for h in range(L):
        for s in range(S):
            for a in range(A):
                for x in range(S):
                    weights[h, s, a, x] = exponential(u[n])
                    n += 1
    return n


@njit(cache=True)
def draw_rewards(u: Array, rewards: Array, kind: int) -> None:
    """Mean rewards float32[L, S, A] from the uniforms u: one each, or one for the goal state."""
    n = 0
    L, S, A = rewards.shape
    goal = np.int64(u[0] * np.float32(S)) if kind == SPARSE else -1
    for h in range(L):
        for s in range(S):
            for a in range(A):
                if kind == SPARSE:
                    rewards[h, s, a] = np.float32(1) if s == goal else np.float32(0)
                else:
                    rewards[h, s, a] = u[n]
                    n += 1


@njit(cache=True)
def plan(weights: Array, rewards: Array, values: Array, policy: Array) -> None:
    """Backward induction: Q*_h = r_h + P_h max_a Q*_{h+1} into float64[H, S, A], its argmax into uint8[H, S]."""
    H, S, A = values.shape
    last = weights.shape[0] - 1
    best = np.zeros(S)
    following = np.zeros(S)
    for h in range(H - 1, -1, -1):
        at = min(h, last)
        for s in range(S):
            top = -1.0
            for a in range(A):
                total = 0.0
                dot = 0.0
                if h < H - 1:
                    for x in range(S):
                        w = np.float64(weights[at, s, a, x])
                        total += w
                        dot += w * following[x]
                    dot /= total
                value = np.float64(rewards[at, s, a]) + dot
                values[h, s, a] = value
                if value > top:
                    top = value
                    policy[h, s] = a
            best[s] = top
        for s in range(S):
            following[s] = best[s]


@njit(cache=True)
def next_state(weights: Array, u: Real) -> int:
    """The state whose cell of the cumulative weights float32[S] holds the uniform u."""
    total = 0.0
    for x in range(weights.size):
        total += np.float64(weights[x])
    left = np.float64(u) * total
    so_far = 0.0
    for x in range(weights.size - 1):
        so_far += np.float64(weights[x])
        if left < so_far:
            return x
    return int(weights.size - 1)


@njit(cache=True, nogil=True)
def _sample(
    k0: Word, k1: Word, tag: Word, index: Array, scratch: Array, kind: int, weights: Array, rewards: Array
) -> None:
    for row in range(index.size):
        low, high = np.uint64(index[row]) & _LOW, np.uint64(index[row]) >> _32
        draw_uniforms(scratch, tag, low, high, k0, k1)
        used = draw_transitions(scratch, weights[row])
        draw_rewards(scratch[used:], rewards[row], kind)


@njit(cache=True, nogil=True)
def _sample_known(k0: Word, k1: Word, tag: Word, index: Array, scratch: Array, kind: int, rewards: Array) -> None:
    for row in range(index.size):
        low, high = np.uint64(index[row]) & _LOW, np.uint64(index[row]) >> _32
        draw_uniforms(scratch, tag, low, high, k0, k1)
        draw_rewards(scratch, rewards[row], kind)


@njit(cache=True, nogil=True)
def _plan(weights: Array, rewards: Array, values: Array, policy: Array) -> None:
    for row in range(rewards.shape[0]):
        plan(weights[row], rewards[row], values[row], policy[row])


@njit(cache=True, nogil=True)
def _move(weights: Array, state: Array, action: Array, step: int, u: Array) -> None:
    at = min(step, weights.shape[1] - 1)
    for row in range(state.size):
        state[row] = next_state(weights[row, at, state[row], action[row]], u[row])


def grid_weights(environment: GridWorldConfig) -> npt.NDArray[np.float32]:
    """float32[1, S, A, S]: the moves of Dark Room, each certain."""
    side = environment.side
    weights = np.zeros((1, side * side, 5, side * side), np.float32)
    for row in range(side):
        for column in range(side):
            for action, (down, right) in enumerate(((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))):
                to = min(max(row + down, 0), side - 1) * side + min(max(column + right, 0), side - 1)
                weights[0, row * side + column, action, to] = 1
    return weights


def scratch_size(environment: MDPConfig) -> int:
    """How many uniforms decide an environment."""
    if isinstance(environment, GridWorldConfig):
        return 1
    S, A = environment.n_states, environment.n_actions
    L = 1 if environment.stationary else environment.episode_length
    return L * S * A * S + (1 if environment.reward == "sparse" else L * S * A)


def reward_kind(environment: MDPConfig) -> int:
    """DENSE or SPARSE."""
    return DENSE if isinstance(environment, TabularMDPConfig) and environment.reward == "dense" else SPARSE


def bernoulli_rewards(environment: MDPConfig) -> bool:
    """Whether a reward is 0 or 1 with its mean as probability, rather than its mean."""
    return isinstance(environment, TabularMDPConfig) and environment.reward_noise == "bernoulli"


def fixed_start(environment: MDPConfig) -> int:
    """The state in which every episode starts; -1: a random one."""
    if environment.start == "random":
        return -1
    return environment.n_states // 2 if isinstance(environment, GridWorldConfig) else 0


def sample(environment: MDPConfig, seed: int, split: Split, indices: npt.NDArray[np.int64]) -> MDPBatch:
    """The environments of these trajectory indices."""
    index = streams.checked_indices(indices)
    B, S, A, H = index.size, environment.n_states, environment.n_actions, environment.episode_length
    L = 1 if environment.stationary else H
    tag = streams.tag_word(split, Stream.ENVIRONMENT, USE_UNIFORM)
    scratch = np.empty(scratch_size(environment), np.float32)
    key, kind = streams.key_words(seed), reward_kind(environment)
    rewards = np.empty((B, L, S, A), np.float32)
    if isinstance(environment, GridWorldConfig):
        weights = np.broadcast_to(grid_weights(environment), (B, L, S, A, S))
        _sample_known(*key, tag, index, scratch, kind, rewards)
    else:
        weights = np.empty((B, L, S, A, S), np.float32)
        _sample(*key, tag, index, scratch, kind, weights, rewards)
    values, policy = np.empty((B, H, S, A)), np.empty((B, H, S), np.uint8)
    _plan(weights, rewards, values, policy)
    return MDPBatch(index=index, weights=weights, rewards=rewards, optimal_values=values, optimal_policy=policy)


class MDPInteraction:
    """A play of B MDPs; all algorithms meet the same noise, a function of index and round."""

    def __init__(self, environment: MDPConfig, batch: MDPBatch, seed: int, split: Split) -> None:
        self._environment, self._batch = environment, batch
        self._key = (seed, split)
        self._row = np.arange(len(batch.index))
        self._round = 0
        self._draw()
        self._state = np.empty(len(batch.index), np.int64)
        self._enter()

    @property
    def _step(self) -> int:
        return self._round % self._environment.episode_length

    def observe(self) -> Observation:
        return self._state.copy()

    def optimal_action(self) -> npt.NDArray[np.uint8]:
        action: npt.NDArray[np.uint8] = self._batch.optimal_policy[self._row, self._step, self._state]
        return action

    def suboptimality(self, action: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        values = self._batch.optimal_values[self._row, self._step, self._state]
        gap: npt.NDArray[np.float32] = (values.max(axis=1) - values[self._row, action]).astype(np.float32)
        return gap

    def step(self, action: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        at = min(self._step, self._batch.rewards.shape[1] - 1)
        reward: npt.NDArray[np.float32] = self._batch.rewards[self._row, at, self._state, action]
        if bernoulli_rewards(self._environment):
            reward = (self._noise[:, self._round % CHUNK] < reward).astype(np.float32)
        step = self._step
        self._round += 1
        if self._round == self._environment.horizon:
            return reward
        if self._round % CHUNK == 0:
            self._draw()
        if self._step == 0:
            self._enter()
        else:
            u = np.ascontiguousarray(self._uniform[:, self._round % CHUNK])
            _move(self._batch.weights, self._state, np.ascontiguousarray(action, np.int64), step, u)
        return reward

    def _draw(self) -> None:
        count = min(CHUNK, self._environment.horizon - self._round)
        where = (self._batch.index, count)
        self._uniform = streams.uniforms(*self._key, Stream.TRANSITION, *where, start=self._round)
        if bernoulli_rewards(self._environment):
            self._noise = streams.uniforms(*self._key, Stream.REWARD, *where, start=self._round)

    def _enter(self) -> None:
        """Begin an episode."""
        start = fixed_start(self._environment)
        if start >= 0:
            self._state[:] = start
        else:
            n_states = np.float32(self._environment.n_states)
            self._state[:] = (self._uniform[:, self._round % CHUNK] * n_states).astype(np.int64)
