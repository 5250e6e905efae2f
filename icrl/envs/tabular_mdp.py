"""Finite-horizon tabular MDPs, and Dark Room as one of them; compiled, one environment at a time.

A round t = 0 .. K H - 1 is step h = t mod H of episode t // H. The state of round t is drawn at uniform t of stream
TRANSITION: from the start law where h = 0, else from P_{h-1}(. | s, a) by inverse CDF.

Shapes: B environments, S states, A actions, H steps, K episodes; L = 1 for stationary MDPs, else H.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from icrl import streams
from icrl.config import GridWorldConfig, MDPConfig, TabularMDPConfig
from icrl.envs import mdp_kernels
from icrl.envs.base import Observation
from icrl.envs.mdp_kernels import (
    DENSE,
    SPARSE,
    draw_rewards,
    draw_transitions,
    draw_uniforms,
    next_state,
    plan,
    plan_known,
    sources,
    total_of,
)
from icrl.streams import USE_UNIFORM, Split, Stream, Word

CHUNK = 64
"""Rounds whose random numbers are drawn at once."""

Array = npt.NDArray[Any]

_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


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


def _compile(stamp: int) -> tuple[Callable[..., None], ...]:
    @njit(cache=True, nogil=True)
    def draw(
        k0: Word, k1: Word, tag: Word, index: Array, scratch: Array, kind: int, weights: Array, rewards: Array
    ) -> None:
        _ = stamp
        cells = scratch.size if weights.size == 0 else weights[0].size
        for row in range(index.size):
            low, high = np.uint64(index[row]) & _LOW, np.uint64(index[row]) >> _32
            draw_uniforms(scratch, tag, low, high, k0, k1)
            if weights.size:
                draw_transitions(scratch, weights[row].reshape(cells))
                draw_rewards(scratch[cells:], rewards[row], kind)
            else:
                draw_rewards(scratch, rewards[row], kind)

    @njit(cache=True, nogil=True)
    def solve(weights: Array, rewards: Array, values: Array, policy: Array) -> None:
        _ = stamp
        S, A = values.shape[2], values.shape[3]
        columns, totals, best = np.empty((S, S * A)), np.empty((weights.shape[1], S * A)), np.empty(S)
        for row in range(rewards.shape[0]):
            plan(weights[row], rewards[row], columns, totals, best, values[row], policy[row])

    @njit(cache=True, nogil=True)
    def solve_known(moves: Array, rewards: Array, values: Array, policy: Array) -> None:
        _ = stamp
        best = np.empty(values.shape[2])
        for row in range(rewards.shape[0]):
            plan_known(moves, rewards[row], best, values[row], policy[row])

    @njit(cache=True, nogil=True)
    def move(weights: Array, state: Array, action: Array, step: int, u: Array) -> None:
        _ = stamp
        layer = min(step, weights.shape[1] - 1)
        for row in range(state.size):
            law = weights[row, layer, state[row], action[row]]
            state[row] = next_state(law, total_of(law), u[row])

    return draw, solve, solve_known, move


_draw, _solve, _solve_known, _move = _compile(sources(streams, mdp_kernels))


def grid_moves(environment: GridWorldConfig) -> npt.NDArray[np.int64]:
    """int64[S, A]: the room that each action leads to; a move into a wall stays."""
    side = environment.side
    moves = np.empty((side * side, 5), np.int64)
    for row in range(side):
        for column in range(side):
            for action, (down, right) in enumerate(((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))):
                to = min(max(row + down, 0), side - 1) * side + min(max(column + right, 0), side - 1)
                moves[row * side + column, action] = to
    return moves


def known_moves(environment: MDPConfig) -> npt.NDArray[np.int64]:
    """int64[S, A]: the certain moves of Dark Room; int64[0, 0] where transitions are drawn."""
    return grid_moves(environment) if isinstance(environment, GridWorldConfig) else np.empty((0, 0), np.int64)


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
    if isinstance(environment, GridWorldConfig):  # the middle room; of an even side, the one below and right of it
        return environment.side // 2 * environment.side + environment.side // 2
    return 0


def sample(environment: MDPConfig, seed: int, split: Split, indices: npt.NDArray[np.int64]) -> MDPBatch:
    """The environments of these trajectory indices.

    Uniforms of stream ENVIRONMENT: one for each weight of a transition, then one for each mean reward or the goal.
    """
    index = streams.checked_indices(indices)
    B, S, A, H = index.size, environment.n_states, environment.n_actions, environment.episode_length
    L = 1 if environment.stationary else H
    tag = streams.tag_word(split, Stream.ENVIRONMENT, USE_UNIFORM)
    scratch = np.empty(scratch_size(environment), np.float32)
    rewards, values, policy = np.empty((B, L, S, A), np.float32), np.empty((B, H, S, A)), np.empty((B, H, S), np.uint8)
    known = isinstance(environment, GridWorldConfig)
    weights = np.empty((0 if known else B, L, S, A, S), np.float32)
    _draw(*streams.key_words(seed), tag, index, scratch, reward_kind(environment), weights, rewards)
    if known:
        moves = known_moves(environment)
        _solve_known(moves, rewards, values, policy)
        weights = np.broadcast_to((moves[:, :, None] == np.arange(S)).astype(np.float32), (B, L, S, A, S))
    else:
        _solve(weights, rewards, values, policy)
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
