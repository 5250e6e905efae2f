"""Thompson sampling for linear bandits with a Gaussian prior (paper, section 4.2 and Thm 10).

Shapes: B interactions, A actions, d dim, S Monte Carlo samples.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from icrl import streams
from icrl.algorithms.base import Algorithm, Draws, largest
from icrl.algorithms.posterior import RidgePosterior
from icrl.config import EnvironmentConfig, ThompsonConfig, algorithm_misfits
from icrl.envs import BanditBatch, Batch, Observation
from icrl.streams import Split, Stream

MONTE_CARLO_SEED = 0x5448_4F4D_5053_4F4E
"""Key of the samples behind `probabilities`, apart from the seeds that datasets and evaluations use."""


class Thompson(Algorithm):
    """Plays argmax <a, w> for w ~ N(mu_t, r Sigma_t^-1), Sigma_t = (r / lambda) I + sum_j a_j a_j'.

    r is `noise_variance`, or the environment's own; lambda is `prior_variance`.
    """

    name = "thompson"
    samples = 1024
    """Monte Carlo samples behind `probabilities`."""
    sample_set = 0
    """Which of the independent sets of samples."""

    def __init__(self, config: ThompsonConfig, environment: EnvironmentConfig) -> None:
        """Raises ValueError where noise_variance is null and the environment has no noise."""
        self.config = config
        self.noise_variance = noise_variance(config, environment)

    def reset(self, environments: Batch) -> None:
        assert isinstance(environments, BanditBatch)
        self._posterior = RidgePosterior(environments.action_set, self.noise_variance / self.config.prior_variance)
        self._round = 0

    def observe(self, observation: Observation) -> None:
        self._posterior.meet(observation)

    def probabilities(self) -> npt.NDArray[np.float64]:
        """float64[B, A]: share of `samples` posterior samples whose best action is a; see `standard_error`.

        The samples are a function of the round alone: calling it changes nothing that the algorithm plays.
        """
        d = self._posterior.mean.shape[1]
        round_ = np.array([self._round])
        z = streams.normals(MONTE_CARLO_SEED + self.sample_set, Split.EVAL, Stream.ALGORITHM, round_, self.samples * d)
        z_SD = z.reshape(self.samples, d).astype(np.float64)
        mean, factors = self._posterior.means(), np.sqrt(self.noise_variance) * self._posterior.factors()
        out = np.empty(mean.shape)
        for first in range(0, len(mean), 64):  # B A S values need not be held at once
            some = slice(first, first + 64)
            best_BS = np.argmax(factors[some] @ z_SD.T + mean[some, :, None], axis=1)
            for a in range(mean.shape[1]):
                out[some, a] = np.count_nonzero(best_BS == a, axis=1) / self.samples
        return out

    def resample(self) -> bool:
        self.sample_set += 1
        return True

    def standard_error(self, probabilities: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """float64[B, A]: sqrt(p (1 - p) / samples), at most 1/64."""
        return np.sqrt(probabilities * (1 - probabilities) / self.samples)

    def act(self, draws: Draws) -> npt.NDArray[np.int64]:
        noise = np.einsum("bad,bd->ba", self._posterior.factors(), draws.normals(self._posterior.mean.shape[1]))
        return largest(self._posterior.means() + np.sqrt(self.noise_variance) * noise)

    def update(self, action: npt.NDArray[np.int64], reward: npt.NDArray[np.float32]) -> None:
        self._posterior.update(action, reward)
        self._round += 1


def noise_variance(config: ThompsonConfig, environment: EnvironmentConfig) -> float:
    """r: the configured one, or the environment's noise_std squared; raises ValueError where there is none."""
    if config.noise_variance is not None:
        return config.noise_variance
    for problem in algorithm_misfits("thompson", config, environment):
        raise ValueError(str(problem))
    return float(getattr(environment, "noise_std") ** 2)  # noqa: B009 - MDPs have none
