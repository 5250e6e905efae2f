"""Posterior sampling (PSRL): before each episode an MDP is drawn from the posterior, and its optimal policy played.

Prior: transitions Dirichlet(1); mean rewards Beta(1, 1), updated by Bernoulli rewards. Where rewards are their means
(`reward_noise: none`, Dark Room) a pair that was visited has the mean seen there, and one that was not Beta(1, 1).
Where the MDP is stationary the posterior is shared by all steps, else each step h has its own. The prior is the
learner's, whatever the environments are: it does not know the moves of Dark Room, nor that rewards are sparse.

Random numbers: layer l of episode k draws whole gammas (`icrl.gammas`) in the cells (k L + l) m + (s A + a) (S + 2) + j
of stream ALGORITHM: j < S next states, j = S, S + 1 the two of the mean reward, x / (x + y); m is S A (S + 2), made a
multiple of 4.

Shapes: B interactions, S states, A actions, H steps, K episodes, N samples; L = 1 for stationary MDPs, else H.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from icrl import gammas
from icrl.algorithms.base import Algorithm, Draws
from icrl.config import EnvironmentConfig, GridWorldConfig, PSRLConfig, TabularMDPConfig
from icrl.envs import Batch, MDPBatch, Observation, mdp_kernels
from icrl.envs.mdp_kernels import Array, back_up, sources
from icrl.envs.tabular_mdp import bernoulli_rewards
from icrl.streams import Split, Stream

_ONE = np.float32(1)

MONTE_CARLO_SEED = 0x5053_524C_5053_524C
"""Key of the samples behind `probabilities`, apart from the seeds that datasets and evaluations use."""

Sampler = Callable[[npt.NDArray[np.float32], int], npt.NDArray[np.float32]]
"""Gamma draws float32[N, m] of shapes float32[N, m], in the cells from a given one on."""


@njit(nogil=True)
def unpack(gamma: Array, known: Array, columns: Array, totals: Array, rewards: Array) -> None:
    """Gammas float32[S A (S + 2)] to weights, float64[S', S A], their sums float64[S A], rewards float32[S, A].

    known float32[S, A]: a mean reward that was seen, or NaN.
    """
    S, A = rewards.shape
    for s in range(S):
        for a in range(A):
            pair = s * A + a
            first = pair * (S + 2)
            total = 0.0
            for x in range(S):
                w = np.float64(gamma[first + x])
                total += w
                columns[x, pair] = w
            totals[pair] = total
            success, failure = gamma[first + S], gamma[first + S + 1]
            seen = known[s, a]
            rewards[s, a] = success / (success + failure) if np.isnan(seen) else seen


@njit(nogil=True)
def plan_layer(
    gamma: Array,
    known: Array,
    first: int,
    last: int,
    columns: Array,
    totals: Array,
    rewards: Array,
    values: Array,
    best: Array,
    policy: Array,
) -> None:
    """Steps last .. first of backward induction in a sampled MDP, into policy uint8[H, S].

    gamma, known, columns, totals, rewards as in `unpack`; values float64[S, A] is scratch; best float64[S] holds
    V_{last + 1} before and V_first after.
    """
    unpack(gamma, known, columns, totals, rewards)
    for h in range(last, first - 1, -1):
        back_up(columns, totals, rewards, best, values, policy[h])


@njit(nogil=True)
def learn(states: Array, actions: Array, rewards: Array, bernoulli: bool, posterior: Array, known: Array) -> None:  # noqa: FBT001
    """Count an episode's H steps into posterior float32[L, S A (S + 2)] and known float32[L, S, A]."""
    L, S, A = known.shape
    H = states.size
    for h in range(H):
        layer, s, a = min(h, L - 1), np.int64(states[h]), np.int64(actions[h])
        first = (s * A + a) * (S + 2)
        if h < H - 1:
            posterior[layer, first + np.int64(states[h + 1])] += _ONE
        if bernoulli:
            posterior[layer, first + S] += rewards[h]
            posterior[layer, first + S + 1] += _ONE - rewards[h]
        else:
            known[layer, s, a] = rewards[h]


def _compile(stamp: int) -> tuple[Callable[..., None], ...]:
    @njit(cache=True, nogil=True)
    def plan_rows(gamma: Array, known: Array, first: int, last: int, best: Array, policy: Array) -> None:
        """N sampled MDPs; known float32[N or 1, S, A]."""
        _ = stamp
        S, A = known.shape[1:]
        columns, totals, rewards = np.empty((S, S * A)), np.empty(S * A), np.empty((S, A), np.float32)
        values = np.empty((S, A))
        for n in range(len(gamma)):
            mine = known[n % len(known)]
            plan_layer(gamma[n], mine, first, last, columns, totals, rewards, values, best[n], policy[n])

    @njit(cache=True, nogil=True)
    def learn_rows(
        states: Array,
        actions: Array,
        rewards: Array,
        bernoulli: bool,  # noqa: FBT001
        posterior: Array,
        known: Array,
    ) -> None:
        _ = stamp
        for row in range(len(states)):
            learn(states[row], actions[row], rewards[row], bernoulli, posterior[row], known[row])

    return plan_rows, learn_rows


_plan: Any
_learn: Any
_plan, _learn = _compile(sources(mdp_kernels))


class PSRL(Algorithm):
    """Plays the optimal policy of one posterior sample throughout an episode."""

    name = "psrl"
    samples = 256
    """Monte Carlo samples behind `probabilities`."""
    sample_set = 0
    """Which of the independent sets of samples."""

    def __init__(self, config: PSRLConfig, environment: EnvironmentConfig) -> None:
        """Raises ValueError where an interaction needs more random numbers than a stream has."""
        assert isinstance(environment, TabularMDPConfig | GridWorldConfig)
        self.config = config
        self._environment = environment
        self._layers = 1 if environment.stationary else environment.episode_length
        self._cells = environment.n_states * environment.n_actions * (environment.n_states + 2)
        numbers = config.numbers(environment)
        if numbers > 2**32:
            raise ValueError(
                f"algorithm = psrl with {environment.episodes} episodes of {environment.n_states} states: "
                f"expected at most {2**32} random numbers, not {numbers}; lower environment.episodes or the states"
            )
        self._stride = numbers // (environment.episodes * self._layers)

    def reset(self, environments: Batch) -> None:
        assert isinstance(environments, MDPBatch)
        B, H, S, A = environments.optimal_values.shape
        self._posterior = np.ones((B, self._layers, self._cells), np.float32)
        self._known = np.full((B, self._layers, S, A), np.nan, np.float32)
        self._row = np.arange(B)
        self._states, self._actions = np.empty((B, H), np.int64), np.empty((B, H), np.int64)
        self._rewards = np.empty((B, H), np.float32)
        self._policy: npt.NDArray[np.uint8] | None = None
        self._sampled: npt.NDArray[np.uint8] | None = None
        self._round = 0

    @property
    def posterior(self) -> npt.NDArray[np.float32]:
        """float32[B, L, S, A, S + 2]: parameters before this episode, Dirichlet in front, the two of Beta behind."""
        S, A = self._environment.n_states, self._environment.n_actions
        return self._posterior.reshape(-1, self._layers, S, A, S + 2)

    def observe(self, observation: Observation) -> None:
        assert observation is not None
        self._episode, self._step = divmod(self._round, self._environment.episode_length)
        self._states[:, self._step] = observation

    def _optimal_policies(
        self, n: int, posterior: npt.NDArray[np.float32], known: npt.NDArray[np.float32], draw: Sampler
    ) -> npt.NDArray[np.uint8]:
        """uint8[N, H, S]: optimal in N draws from as many posteriors, or from one; layer by layer to save memory."""
        H, S = self._environment.episode_length, self._environment.n_states
        best, policy = np.zeros((n, S)), np.empty((n, H, S), np.uint8)
        for layer in range(self._layers - 1, -1, -1):
            shape = np.broadcast_to(posterior[:, layer], (n, self._cells))
            gamma = draw(shape, (self._episode * self._layers + layer) * self._stride)
            first, last = (0, H - 1) if self._layers == 1 else (layer, layer)
            _plan(gamma, np.ascontiguousarray(known[:, layer]), first, last, best, policy)
        return policy

    def act(self, draws: Draws) -> npt.NDArray[np.int64]:
        if self._policy is None:
            self._policy = self._optimal_policies(self._row.size, self._posterior, self._known, draws.whole_gammas)
        action: npt.NDArray[np.int64] = self._policy[self._row, self._step, self._states[:, self._step]].astype(
            np.int64
        )
        return action

    def update(self, action: npt.NDArray[np.int64], reward: npt.NDArray[np.float32]) -> None:
        self._actions[:, self._step] = action
        self._rewards[:, self._step] = reward
        self._round += 1
        if self._step == self._environment.episode_length - 1:  # what an episode shows counts from the next one on
            bernoulli = bernoulli_rewards(self._environment)
            _learn(self._states, self._actions, self._rewards, bernoulli, self._posterior, self._known)
            self._policy = self._sampled = None

    def _agreement(self) -> npt.NDArray[np.int64]:
        """int64[B, N]: in how many earlier steps of the episode a Monte Carlo sample's policy plays what was played."""
        B, H = self._states.shape
        if self._sampled is None:
            self._sampled = np.empty((B, self.samples, H, self._environment.n_states), np.uint8)
            for row in range(B):
                mine = slice(row, row + 1)
                self._sampled[row] = self._optimal_policies(
                    self.samples, self._posterior[mine], self._known[mine], self._draw
                )
        agreement = np.zeros((B, self.samples), np.int64)
        for h in range(self._step):
            agreement += self._sampled[self._row, :, h, self._states[:, h]] == self._actions[:, h, None]
        return agreement

    def probabilities(self) -> npt.NDArray[np.float64]:
        """float64[B, A]: the law of the next action given the history and that PSRL itself has played this episode.

        The sample behind the episode is not part of the history. It is distributed as the posterior given that its
        policy plays the actions of the episode so far; so the estimate is the share of action a among those of
        `samples` posterior samples that do, at the first step all of them. The samples are a function of the posterior
        and the episode: asking changes nothing that is played. Where none plays all of them, those that play most of
        them stand in; see `standard_error`.
        """
        agreement = self._agreement()
        alike = agreement == agreement.max(axis=1, keepdims=True)
        assert self._sampled is not None
        chosen = self._sampled[self._row, :, self._step, self._states[:, self._step]]
        counts = [(alike & (chosen == a)).sum(axis=1) for a in range(self._environment.n_actions)]
        probabilities: npt.NDArray[np.float64] = np.stack(counts, axis=1) / alike.sum(axis=1, keepdims=True)
        return probabilities

    def standard_error(self, probabilities: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """float64[B, A]: sqrt(p (1 - p) / n), n samples that play the episode so far; infinite where there is none."""
        n = (self._agreement() == self._step).sum(axis=1, keepdims=True)
        variance = np.full(probabilities.shape, np.inf)
        np.divide(probabilities * (1 - probabilities), n, out=variance, where=n > 0)
        error: npt.NDArray[np.float64] = np.sqrt(variance)
        return error

    def resample(self) -> bool:
        self.sample_set += 1
        return True

    def _draw(self, shape: npt.NDArray[np.float32], start: int) -> npt.NDArray[np.float32]:
        """The gammas behind Monte Carlo samples 0, 1, ..."""
        key = (MONTE_CARLO_SEED + self.sample_set, Split.EVAL, Stream.ALGORITHM, np.arange(len(shape)))
        return gammas.gammas_of_whole_shapes(*key, shape, start=start)
