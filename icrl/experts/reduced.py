"""Reduced experts: E[Alg_E(. | D_T, M) | D_{t-1}, s_t], what a transformer with enough data and capacity learns.

Each is an `Algorithm`, so it can be played, replayed and compared like any other.

Shapes: B interactions, C components, A actions, d dim, S states, G goals, H steps of an episode.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from icrl.algorithms import Algorithm, Draws, choose
from icrl.algorithms.posterior import RidgePosterior
from icrl.best_arm import BetaBest, gaussian_best
from icrl.config import BernoulliBanditConfig, GaussianBanditConfig, GridWorldConfig, LinearBanditConfig
from icrl.envs import BanditBatch, Batch, MDPBatch, Observation
from icrl.experts.posterior import BOX_PROPOSAL_VARIANCE, Normal, Tallies, gaussian_means, linear_best, noise_variance

Float64Array = npt.NDArray[np.float64]

_ROUNDS = 2**20
"""More than any horizon: sets of samples are this far apart."""


class Reduced(Algorithm):
    """Samples from its probabilities."""

    name = "reduced_expert"

    def act(self, draws: Draws) -> npt.NDArray[np.int64]:
        return choose(self.probabilities(), draws.uniform)


class TrajectoryMixture(Reduced):
    """The law of trajectories that each come from one component: P(D) = sum_c w_c prod_t Alg_c(a_t | D_{t-1}, s_t).

    Alg(a | D_{t-1}, s_t) = sum_c v_c Alg_c(a | D_{t-1}, s_t), v_c proportional to w_c prod_{j < t} Alg_c(a_j | ...):
    the component's posterior. Components with Monte Carlo probabilities count as `smoothed`.
    """

    def __init__(self, components: Sequence[Algorithm], weights: Sequence[float]) -> None:
        """Relative weights, at least one above 0."""
        kept = [(component, weight) for component, weight in zip(components, weights, strict=True) if weight > 0]
        self._components = [component for component, _ in kept]
        self._log_prior = np.log(np.array([weight for _, weight in kept]) / sum(weight for _, weight in kept))

    def reset(self, environments: Batch) -> None:
        for component in self._components:
            component.reset(environments)
        self._row = np.arange(len(environments.index))
        self._log_weight: Float64Array = np.repeat(self._log_prior[:, None], len(self._row), axis=1)
        self._each: Float64Array | None = None

    def observe(self, observation: Observation) -> None:
        for component in self._components:
            component.observe(observation)
        self._each = None

    def resample(self) -> bool:
        return sum(component.resample() for component in self._components) > 0

    def weights(self) -> Float64Array:
        """float64[C, B]: the posterior of the component that played so far, those of weight 0 left out."""
        weight = np.exp(self._log_weight - self._log_weight.max(axis=0))
        posterior: Float64Array = weight / weight.sum(axis=0)
        return posterior

    def probabilities(self) -> Float64Array:
        mixed: Float64Array = np.einsum("cb,cba->ba", self.weights(), self._by_component())
        return mixed

    def update(self, action: npt.NDArray[np.int64], reward: npt.NDArray[np.float32]) -> None:
        with np.errstate(divide="ignore"):
            after = self._log_weight + np.log(self._by_component()[:, self._row, action])
        # what no component would have done says nothing about which one it was
        self._log_weight = np.where(np.isneginf(after).all(axis=0), self._log_weight, after)
        for component in self._components:
            component.update(action, reward)
        self._each = None

    def _by_component(self) -> Float64Array:
        if self._each is None:
            self._each = np.stack([smoothed(component.probabilities(), component) for component in self._components])
        return self._each


def smoothed(probabilities: Float64Array, algorithm: Algorithm) -> Float64Array:
    """The probabilities float64[..., A], with half a sample added to each action where they are shares of samples.

    A share of 0 of S samples means a probability below about 1 / S, not 0: its logarithm would be infinite.
    """
    samples: int | None = getattr(algorithm, "samples", None)
    if samples is None:
        return probabilities
    mixed: Float64Array = (probabilities * samples + 0.5) / (samples + 0.5 * probabilities.shape[-1])
    return mixed


class _MultiArmed(Reduced):
    """Counts plays and rewards."""

    def reset(self, environments: Batch) -> None:
        shape = (len(environments.index), environments.n_actions)
        self._seen = Tallies(np.zeros(shape, np.int64), np.zeros(shape))
        self._row = np.arange(shape[0])

    def update(self, action: npt.NDArray[np.int64], reward: npt.NDArray[np.float32]) -> None:
        self._seen.count[self._row, action] += 1
        self._seen.sum[self._row, action] += reward


class BernoulliPosterior(_MultiArmed):
    """P(a is best | D_{t-1}) of a Bernoulli bandit with p ~ Unif[0, 1]^A, by quadrature (`BetaBest`)."""

    def __init__(self, environment: BernoulliBanditConfig) -> None:
        self._best = BetaBest(environment.n_actions, environment.horizon)

    def probabilities(self) -> Float64Array:
        return self._best.probabilities(self._seen.sum, self._seen.count - self._seen.sum)


class GaussianPosterior(_MultiArmed):
    """P(a is best | D_{t-1}) of a Gaussian bandit, by quadrature (`gaussian_best`)."""

    def __init__(self, environment: GaussianBanditConfig) -> None:
        self._environment = environment

    def probabilities(self) -> Float64Array:
        return gaussian_best(*gaussian_means(self._environment, self._seen))


class BoxPosterior(Reduced):
    """P(a is best | D_{t-1}) of a linear bandit with w* ~ Unif[0, 1]^d and Gaussian noise, by importance sampling.

    See `linear_best`; the samples are a function of the round alone.
    """

    samples = 1024
    sample_set = 0
    """Which of the independent sets of samples."""

    def __init__(self, environment: LinearBanditConfig) -> None:
        self._noise = noise_variance(environment)

    def reset(self, environments: Batch) -> None:
        assert isinstance(environments, BanditBatch)
        self._posterior = RidgePosterior(environments.action_set, self._noise / BOX_PROPOSAL_VARIANCE)
        self._posterior.mean[:] = 0.5
        self._round = 0

    def observe(self, observation: Observation) -> None:
        if observation is not None:
            self._posterior.action_set = observation.astype(np.float64)

    def probabilities(self) -> Float64Array:
        posterior = Normal(self._posterior.mean, np.sqrt(self._noise) * self._posterior.root)
        batch = self._round + self.sample_set * _ROUNDS
        found = linear_best(posterior, self._posterior.action_set, batch, box=True, samples=self.samples)
        return found.probabilities

    def resample(self) -> bool:
        self.sample_set += 1
        return True

    def update(self, action: npt.NDArray[np.int64], reward: npt.NDArray[np.float32]) -> None:
        self._posterior.update(action, reward)
        self._round += 1


class DarkRoomPosterior(Reduced):
    """P(a is the optimal action in s_t | D_{t-1}, s_t) of Dark Room: the goals not ruled out are equally likely.

    A reward of 1 shows that the state it was seen in is the goal, one of 0 that it is not.
    """

    def __init__(self, environment: GridWorldConfig) -> None:
        self._environment = environment
        self._policy: npt.NDArray[np.uint8] | None = None

    def reset(self, environments: Batch) -> None:
        assert isinstance(environments, MDPBatch)
        if self._policy is None:
            # the moves are certain, and the same in all environments
            self._policy = self._plan(environments.weights[0, 0].argmax(axis=2))
        self._possible = np.ones((len(environments.index), self._environment.n_states), np.bool_)
        self._row = np.arange(len(environments.index))
        self._round = 0

    def _plan(self, next_state: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """uint8[G, H, S]: the optimal policy for every goal, with moves int64[S, A]; the lowest action wins ties."""
        S, H = self._environment.n_states, self._environment.episode_length
        policy, value = np.empty((S, H, S), np.uint8), np.zeros((S, S), np.int64)
        for h in range(H - 1, -1, -1):
            total = np.eye(S, dtype=np.int64)[:, :, None] + value[:, next_state]  # Q_h(s, a), [G, S, A]
            policy[:, h] = total.argmax(axis=2)
            value = total.max(axis=2)
        return policy

    def observe(self, observation: Observation) -> None:
        assert observation is not None
        self._state = observation.astype(np.int64)

    def probabilities(self) -> Float64Array:
        assert self._policy is not None
        best_BG = self._policy[:, self._round % self._environment.episode_length, self._state].T
        goals = np.stack(
            [np.count_nonzero((best_BG == a) & self._possible, axis=1) for a in range(self._environment.n_actions)],
            axis=1,
        )
        share: Float64Array = goals / self._possible.sum(axis=1, keepdims=True)
        return share

    def update(self, action: npt.NDArray[np.int64], reward: npt.NDArray[np.float32]) -> None:
        found = reward > 0
        self._possible[found] = False
        self._possible[self._row, self._state] = found
        self._round += 1
