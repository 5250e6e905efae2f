"""How near the transformer is to the exact reduced expert, and its label to posterior sampling, on stored histories.

Shapes: B trajectories, T rounds, A actions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from eval.regret import Estimate, estimate
from icrl.config import Config
from icrl.experts import LabelDivergence, hellinger, kl, label_divergence, no_posterior, reduced_expert
from icrl.rollout.replay import history, replay
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


def distance(config: Config, rows: Rows, split: Split, probabilities: npt.NDArray[np.float64]) -> Distance | None:
    """Of probabilities float64[B, T, A] on these rows of a split; None where there is no reduced expert to compute."""
    expert = reduced_expert(config).algorithm
    if expert is None:
        return None
    n = min(len(probabilities), MOST_SAMPLED if hasattr(expert, "samples") else MOST)
    some = {name: values[:n] for name, values in rows.items()}
    p, q = replay(expert, history(config.environment, config.dataset.seed, split, some)), probabilities[:n]
    means = (measure(p, q).mean(axis=1) for measure in (kl, hellinger))
    return Distance(n, reduced_expert(config).reason, *(estimate(mean) for mean in means))


def approximation(config: Config, rows: Rows, split: Split) -> LabelDivergence | None:
    """epsilon_approx of Prop 7 on these rows; None for other labels, and where P_TS(. | D_T) cannot be computed."""
    if config.expert.label != "approximate":
        return None
    if config.expert.estimates_by != "posterior_sample" and no_posterior(config.environment):
        return None
    return label_divergence(config, rows, split)
