"""How near the transformer is to the exact reduced expert, and its label to posterior sampling, on stored histories.

Shapes: B trajectories, T rounds, A actions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from eval.regret import Estimate, estimate
from icrl.algorithms import Algorithm
from icrl.config import Config
from icrl.experts import LabelDivergence, hellinger, kl, label_divergence, no_posterior, reduced_expert, smoothed
from icrl.rollout.replay import History, history, replay
from icrl.streams import Split

Rows = Mapping[str, npt.NDArray[Any]]

MOST = 256
"""Trajectories that the reduced expert is replayed on, the first ones: it is asked for all its probabilities."""
MOST_SAMPLED = 32
"""The same where its probabilities are shares of Monte Carlo samples."""


@dataclass(frozen=True)
class Distance:
    """Between the reduced expert and the transformer, at every round of the context's trajectories."""

    trajectories: int
    what: str
    """The reduced expert, and how exact it is."""
    kl: Estimate
    """KL(reduced expert || transformer) in nats, mean over the rounds of a trajectory."""
    hellinger: Estimate
    """D_H of the two, mean over the rounds: a T-th of the left side of Thm 6 (i), but under the context's histories."""
    floor: Floor | None
    """None where the reduced expert's probabilities are exact."""


@dataclass(frozen=True)
class Floor:
    """About what `Distance` would say of a perfect model: sampling alone, where probabilities are shares of samples.

    From two independent sets of samples p, q on the first trajectories. Each is off by as much as the other, so
    D_H(p, truth) is about D_H(p, q) / sqrt(2), and KL(p || truth) about half of KL(p || q), for many samples.
    """

    kl: float
    hellinger: float


def distance(config: Config, rows: Rows, split: Split, probabilities: npt.NDArray[np.float64]) -> Distance | None:
    """Of probabilities float64[B, T, A] on these rows of a split; None where there is no reduced expert to compute."""
    expert = reduced_expert(config).algorithm
    if expert is None:
        return None
    n = min(len(probabilities), MOST_SAMPLED if hasattr(expert, "samples") else MOST)
    some = {name: values[:n] for name, values in rows.items()}
    past = history(config.environment, config.dataset.seed, split, some)
    p, q = replay(expert, past), probabilities[:n]
    nats, away = (estimate(measure(p, q).mean(axis=1)) for measure in (kl, hellinger))
    few = {name: values[:MOST_SAMPLED] for name, values in some.items()}
    floor = _floor(expert, history(config.environment, config.dataset.seed, split, few), p[:MOST_SAMPLED])
    return Distance(n, reduced_expert(config).reason, nats, away, floor)


def _floor(expert: Algorithm, past: History, p: npt.NDArray[np.float64]) -> Floor | None:
    """Of an expert that gave these probabilities; it has other samples afterwards."""
    if not expert.resample():
        return None
    q = replay(expert, past)
    # a mixture counts its parts as smoothed already, and may still have a 0 where one is exact
    q_KL = (smoothed(q, expert) + 1e-9) / (1 + 1e-9 * q.shape[-1])
    return Floor(float(kl(p, q_KL).mean()) / 2, float(hellinger(p, q).mean()) / math.sqrt(2))


def approximation(config: Config, rows: Rows, split: Split) -> LabelDivergence | None:
    """epsilon_approx of Prop 7 on these rows; None for other labels, and where P_TS(. | D_T) cannot be computed."""
    if config.expert.label != "approximate":
        return None
    if config.expert.estimates_by != "posterior_sample" and no_posterior(config.environment):
        return None
    return label_divergence(config, rows, split)
