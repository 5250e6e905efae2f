"""Which tabular MDPs the compiled rollout plays, and how it is called."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from icrl import streams
from icrl.algorithms import PSRL, bonuses
from icrl.config import (
    AlgorithmConfig,
    EnvironmentConfig,
    GridWorldConfig,
    MDPConfig,
    OptimalConfig,
    PSRLConfig,
    TabularMDPConfig,
    UCBVIConfig,
    UniformConfig,
)
from icrl.envs.tabular_mdp import bernoulli_rewards, fixed_start, known_moves, reward_kind, scratch_size
from icrl.rollout import mdp_rollout
from icrl.streams import Split, Stream
from icrl.trajectory import TrajectoryBatch


def plays(environment: EnvironmentConfig, algorithm: AlgorithmConfig) -> bool:
    """Whether the compiled rollout knows both."""
    known = UniformConfig | OptimalConfig | UCBVIConfig | PSRLConfig
    return isinstance(environment, TabularMDPConfig | GridWorldConfig) and isinstance(algorithm, known)


def fill(
    environment: MDPConfig,
    algorithm: AlgorithmConfig,
    seed: int,
    split: Split,
    rows: npt.NDArray[np.int64],
    out: TrajectoryBatch,
) -> None:
    """Play these rows of `out` and fill in all that was seen and what would have been best."""
    H = environment.episode_length
    bonus, temperature = np.zeros(1), 1.0
    match algorithm:
        case UniformConfig():
            kind = mdp_rollout.PLAY_UNIFORM
        case OptimalConfig():
            kind = mdp_rollout.PLAY_OPTIMAL
        case UCBVIConfig():
            kind = mdp_rollout.PLAY_UCB_VI
            bonus = bonuses(algorithm, environment)
            if algorithm.temperature:
                kind, temperature = mdp_rollout.PLAY_SOFT_UCB_VI, algorithm.temperature
        case PSRLConfig():
            kind = mdp_rollout.PLAY_PSRL
            PSRL(algorithm, environment)  # says what it cannot play
        case _:
            raise AssertionError(f"{algorithm.algorithm}: `plays` said that there is a kernel")
    mdp_rollout.rollout(
        kind,
        (1 if environment.stationary else H, H, environment.episodes, environment.n_states, environment.n_actions),
        (reward_kind(environment), bernoulli_rewards(environment), fixed_start(environment)),
        known_moves(environment),
        np.empty(scratch_size(environment), np.float32),
        bonus,
        temperature,
        np.array([*streams.key_words(seed), streams.tag_word(split, Stream(0), 0)], np.uint64),
        out.index[rows],
        rows,
        out.action,
        out.reward,
        out.state,
        out.optimal_action,
        out.optimal_policy,
    )
