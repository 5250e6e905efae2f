"""What the compiled rollout of tabular MDPs is measured against: UCB-VI in NumPy, one interaction at a time.

Shapes: S states, A actions, H steps, K episodes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from icrl import envs, streams
from icrl.algorithms import bonuses
from icrl.config import TabularMDPConfig, UCBVIConfig
from icrl.envs import MDPBatch
from icrl.streams import Split, Stream

Float64Array = npt.NDArray[np.float64]


class Problem:
    """A stationary MDP with Bernoulli rewards and its random numbers, ready for the loop."""

    def __init__(self, environment: TabularMDPConfig, config: UCBVIConfig, seed: int, split: Split, index: int) -> None:
        batch: MDPBatch = envs.sample(environment, seed, split, np.array([index]))
        self.cumulative: Float64Array = np.cumsum(batch.transitions[0, 0], axis=-1)
        self.means: Float64Array = batch.rewards[0, 0].astype(np.float64)
        draws = (np.array([index]), environment.horizon)
        self.fate = streams.uniforms(seed, split, Stream.TRANSITION, *draws)[0].astype(np.float64)
        self.noise = streams.uniforms(seed, split, Stream.REWARD, *draws)[0].astype(np.float64)
        self.sizes = (environment.episodes, environment.episode_length, environment.n_states, environment.n_actions)
        self.bonus = bonuses(config, environment)


def ucb_vi(problem: Problem, follow: npt.NDArray[np.uint8] | None = None) -> list[int]:
    """Dense counts float64[H, S, A, S], the whole table planned before each episode with a matrix product a step.

    Returns the actions. With `follow` plays those, and raises ValueError where one is not a largest Q up to rounding:
    two that tie in exact arithmetic may differ in the last bit, so trajectories of two codes part.
    """
    K, H, S, A = problem.sizes
    visits, gained, followed = np.zeros((H, S, A)), np.zeros((H, S, A)), np.zeros((H, S, A, S))
    actions: list[int] = []
    for k in range(K):
        at_least_one = np.maximum(visits, 1)
        mean, law = gained / at_least_one, followed / at_least_one[..., None]
        bonus = problem.bonus[visits.astype(np.int64)]
        values, following = np.empty((H, S, A)), np.zeros(S)
        for h in range(H - 1, -1, -1):
            values[h] = np.minimum(H, mean[h] + bonus[h] + law[h] @ following)
            following = values[h].max(axis=1)
        s = 0
        for h in range(H):
            t = k * H + h
            if follow is None:
                a = int(values[h, s].argmax())
            else:
                a = int(follow[t])
                if values[h, s, a] < values[h, s].max() - 1e-9:
                    raise ValueError(f"round {t}: action {a} of the compiled rollout is not a largest Q")
            actions.append(a)
            visits[h, s, a] += 1
            gained[h, s, a] += problem.noise[t] < problem.means[s, a]
            if h < H - 1:
                x = int(np.searchsorted(problem.cumulative[s, a], problem.fate[t + 1], side="right"))
                followed[h, s, a, x] += 1
                s = x
    return actions
