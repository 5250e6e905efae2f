"""What a whole trajectory says about its environment: the posterior of the means, of w*, and of the best action.

Working model of a linear bandit: w* ~ N(m, v I) with the mean and variance of its prior, and Gaussian noise of the
rewards' variance. Where prior and noise are Gaussian that is the posterior itself, else the best linear estimate.

Shapes: B trajectories, T rounds, A actions, d dim, S Monte Carlo samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from icrl import streams
from icrl.best_arm import BetaBest, gaussian_best
from icrl.config import BernoulliBanditConfig, EnvironmentConfig, GaussianBanditConfig, LinearBanditConfig
from icrl.envs import BanditBatch
from icrl.rollout.replay import History
from icrl.streams import Split, Stream

Float64Array = npt.NDArray[np.float64]

MONTE_CARLO_SEED = 0x4558_5045_5254
"""Key of the samples behind probabilities, apart from the seeds that datasets and evaluations use."""

SAMPLES = 4096
"""Posterior samples behind one probability of the best action of a linear bandit."""

BOX_PROPOSAL_VARIANCE = 0.25
"""The box prior gives way to N(1/2, this I) in proposals: the variance whose worst weight in a flat box is least."""

_BOX_ESS = 200
_BOX_BATCHES = 32


@dataclass(frozen=True)
class Tallies:
    """Plays and rewards of each action."""

    count: npt.NDArray[np.int64]
    """int64[B, A]."""
    sum: Float64Array
    """float64[B, A]; the sum of the rewards in the order of the rounds."""


def tallies(action: npt.NDArray[np.int64], reward: npt.NDArray[np.float32], n_actions: int) -> Tallies:
    """Of whole trajectories: action int64[B, T], reward float32[B, T]."""
    B = len(action)
    at = (np.arange(B)[:, None] * n_actions + action).reshape(-1)
    count = np.bincount(at, minlength=B * n_actions).reshape(B, n_actions)
    total = np.bincount(at, weights=reward.reshape(-1), minlength=B * n_actions).astype(np.float64)
    return Tallies(count.astype(np.int64), total.reshape(B, n_actions))


@dataclass(frozen=True)
class Normal:
    """A Gaussian posterior N(mean, P^-1) of w* for each trajectory."""

    mean: Float64Array
    """float64[B, d]."""
    root: Float64Array
    """float64[B, d, d]: root root' = P^-1."""

    def samples(self, normals: npt.NDArray[np.float32]) -> Float64Array:
        """float64[B, S, d]: draws from standard normals [S, d], or [B, S, d] with its own for each trajectory."""
        spread: Float64Array = normals.astype(np.float64) @ self.root.swapaxes(1, 2)
        return self.mean[:, None] + spread


def moments(environment: LinearBanditConfig) -> tuple[float, float]:
    """Mean and variance of each coordinate of w* under the prior."""
    match environment.prior:
        case "unit_box":
            return 1 / 2, 1 / 12
        case "gaussian":
            return 0.0, 1.0
        case _:
            return 0.0, 1 / environment.dim


def noise_variance(environment: LinearBanditConfig | GaussianBanditConfig) -> float:
    """Variance of a reward about its mean; of 0 or 1 rewards the largest there is."""
    if isinstance(environment, LinearBanditConfig) and environment.noise == "bernoulli":
        return 0.25
    return environment.noise_std**2


def gaussian_means(environment: GaussianBanditConfig, seen: Tallies) -> tuple[Float64Array, Float64Array]:
    """Posterior mean and standard deviation of every action's mean reward, float64[B, A] each."""
    noise = noise_variance(environment)
    weight = seen.count + noise / environment.prior_std**2
    return seen.sum / weight, np.sqrt(noise / weight)


def linear_posterior(
    environment: LinearBanditConfig,
    features: npt.NDArray[np.float32],
    action: npt.NDArray[np.int64],
    reward: npt.NDArray[np.float32],
    prior: tuple[float, float] | None = None,
) -> Normal:
    """Of w* given whole trajectories; `prior` None: the mean and variance of the environment's.

    features float32[B, A, d], or [B, T, A, d] where the actions change; action int64[B, T], reward float32[B, T].
    """
    centre, variance = moments(environment) if prior is None else prior
    x = features.astype(np.float64)
    if x.ndim == 3:
        seen = tallies(action, reward, x.shape[1])
        gram = (x * seen.count[:, :, None]).swapaxes(1, 2) @ x
        against = (seen.sum[:, None] @ x)[:, 0]
    else:
        x = np.take_along_axis(x, action[:, :, None, None], axis=2)[:, :, 0]
        gram = x.swapaxes(1, 2) @ x
        against = (reward[:, None].astype(np.float64) @ x)[:, 0]
    noise = noise_variance(environment)
    precision = gram / noise + np.eye(x.shape[-1]) / variance
    offset = (against - centre * gram.sum(axis=2)) / noise
    root = np.linalg.inv(np.linalg.cholesky(precision)).swapaxes(1, 2)
    mean = centre + (root @ (root.swapaxes(1, 2) @ offset[:, :, None]))[:, :, 0]
    return Normal(mean, root)


@dataclass(frozen=True)
class BestAction:
    """P_TS(. | D): the posterior probability of each action to be the best one."""

    probabilities: Float64Array
    """float64[B, A]."""
    standard_error: Float64Array
    """float64[B, A], of the Monte Carlo; 0 by quadrature."""


def best_action(environment: EnvironmentConfig, past: History) -> BestAction:
    """P_TS(. | D_T) given whole trajectories; exact where `no_posterior` is None.

    Raises:
        ValueError: where there is none, and says why.
    """
    if reason := no_posterior(environment):
        raise ValueError(f"the posterior of the best action: {reason}")
    if isinstance(environment, LinearBanditConfig):
        assert isinstance(past.environments, BanditBatch)
        features = past.environments.action_set
        box = environment.prior == "unit_box"
        prior = (0.5, BOX_PROPOSAL_VARIANCE) if box else None
        posterior = linear_posterior(environment, features, past.action, past.reward, prior)
        return linear_best(posterior, features.astype(np.float64), 0, box=box)
    seen = tallies(past.action, past.reward, environment.n_actions)
    if isinstance(environment, GaussianBanditConfig):
        p = gaussian_best(*gaussian_means(environment, seen))
    else:
        p = BetaBest(environment.n_actions, environment.horizon).probabilities(seen.sum, seen.count - seen.sum)
    return BestAction(p, np.zeros(p.shape))


def no_posterior(environment: EnvironmentConfig) -> str | None:
    """Why the posterior of one best action cannot be computed here; None: it can."""
    match environment:
        case BernoulliBanditConfig():
            return None
        case GaussianBanditConfig():
            return "the rewards have no noise" if environment.noise_std == 0 else None
        case LinearBanditConfig():
            if environment.action_set == "fresh":
                return "the best action changes from round to round"
            return not_conjugate(environment)
        case _:
            return "the best action of an MDP depends on the state"


def not_conjugate(environment: LinearBanditConfig) -> str | None:
    """Why the posterior of w* is not a Gaussian, cut off at the box or not; None: it is."""
    if environment.noise != "gaussian" or environment.noise_std == 0:
        return f"the noise is {'none' if environment.noise == 'gaussian' else environment.noise}, not gaussian"
    if environment.prior not in ("gaussian", "unit_box"):
        return f"the prior is {environment.prior}, not gaussian or unit_box"
    return None


def monte_carlo_normals(batch: int, samples: int, dim: int) -> npt.NDArray[np.float32]:
    """float32[S, d]: the samples behind probabilities, batch number `batch` of them; the same for all trajectories."""
    number = np.array([batch], np.int64)
    z = streams.normals(MONTE_CARLO_SEED, Split.EVAL, Stream.LABEL, number, samples * dim)
    return z.reshape(samples, dim)


def linear_best(
    posterior: Normal, features: Float64Array, batch: int, *, box: bool, samples: int = SAMPLES
) -> BestAction:
    """P(a is best) for w* of this posterior and actions float64[B, A, d], by Monte Carlo over `samples` draws.

    box: the posterior under Unif[0, 1]^d, a Gaussian cut off at the box, by self-normalised importance sampling.
    `posterior` is then the one under N(1/2, BOX_PROPOSAL_VARIANCE I), and a draw w weighs 1 in the box
    / N(w; 1/2, BOX_PROPOSAL_VARIANCE I). Rows whose effective sample size stays under 200 draw more, 32 times as much
    at most; one without any draw in the box is given a standard error of 1. `batch` numbers the samples.
    """
    if not box:
        return _shares(posterior, features, monte_carlo_normals(batch, samples, posterior.mean.shape[1]))
    B, A, d = features.shape
    total, square = np.zeros((B, A)), np.zeros((B, A))
    rows = np.arange(B)
    for attempt in range(_BOX_BATCHES):
        z = monte_carlo_normals(batch * _BOX_BATCHES + attempt, samples, d)
        part = Normal(posterior.mean[rows], posterior.root[rows])
        for first in range(0, len(rows), 64):  # B S d values need not be held at once
            some = slice(first, first + 64)
            w = Normal(part.mean[some], part.root[some]).samples(z)
            weight = np.exp(box_log_weight(w))
            best = _best(w, features[rows[some]])
            total[rows[some]] += _by_action(best, weight, A)
            square[rows[some]] += _by_action(best, weight * weight, A)
        sums, squares = total[rows].sum(axis=1), square[rows].sum(axis=1)
        rows = rows[sums * sums < _BOX_ESS * squares + (squares == 0)]
        if not rows.size:
            break
    weight = total.sum(axis=1, keepdims=True)
    inside = weight > 0
    p = np.divide(total, weight, out=np.full((B, A), 1 / A), where=inside)
    # sum w^2 (1{k} - p)^2 = (1 - p)^2 sum_k w^2 + p^2 sum_{not k} w^2
    spread = (1 - p) ** 2 * square + p**2 * (square.sum(axis=1, keepdims=True) - square)
    return BestAction(p, np.divide(np.sqrt(spread), weight, out=np.ones((B, A)), where=inside))


def box_log_weight(w: Float64Array) -> Float64Array:
    """ln of 1 in [0, 1]^d / N(w; 1/2, BOX_PROPOSAL_VARIANCE I) for w [..., d], but for a constant: 0 in a corner."""
    away = ((w - 0.5) ** 2).sum(axis=-1) - w.shape[-1] / 4
    inside = ((w >= 0) & (w <= 1)).all(axis=-1)
    return np.where(inside, away / (2 * BOX_PROPOSAL_VARIANCE), -np.inf)


def _shares(posterior: Normal, features: Float64Array, z: npt.NDArray[np.float32]) -> BestAction:
    B, A, _ = features.shape
    p = np.empty((B, A))
    for first in range(0, B, 64):
        some = slice(first, first + 64)
        w = Normal(posterior.mean[some], posterior.root[some]).samples(z)
        best = _best(w, features[some])
        p[some] = _by_action(best, np.ones(best.shape), A) / len(z)
    return BestAction(p, np.sqrt(p * (1 - p) / len(z)))


def _best(w: Float64Array, features: Float64Array) -> npt.NDArray[np.int64]:
    """int64[B, S]: the best of the actions float64[B, A, d] for each w* float64[B, S, d]."""
    value = w @ features.swapaxes(1, 2)
    best: npt.NDArray[np.int64] = value.argmax(axis=2)
    return best


def _by_action(best: npt.NDArray[np.int64], weight: Float64Array, n_actions: int) -> Float64Array:
    """float64[B, A]: the weights float64[B, S] of the samples whose best action int64[B, S] is each."""
    B = len(best)
    at = best + n_actions * np.arange(B)[:, None]
    total = np.bincount(at.reshape(-1), weights=weight.reshape(-1), minlength=B * n_actions)
    return total.reshape(B, n_actions).astype(np.float64)
