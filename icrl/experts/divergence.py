"""How far an approximate expert is from posterior sampling (Prop 7), and the distances between policies.

Shapes: B trajectories, T rounds, A actions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from icrl.config import Config, LinearBanditConfig
from icrl.experts.labels import approximate
from icrl.experts.posterior import SAMPLES, best_action, no_posterior
from icrl.rollout.replay import history, played
from icrl.streams import Split

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LabelDivergence:
    """E_{D_T ~ Alg_0} KL(Alg_E(. | D_T) || P_TS(. | D_T)), epsilon_approx of Prop 7, in nats."""

    mean: float
    standard_error: float
    """Over trajectories; 0 with fewer than two."""
    trajectories: int
    how: str
    """How P_TS was computed, and how exactly."""


def label_divergence(config: Config, rows: Mapping[str, npt.NDArray[Any]], split: Split) -> LabelDivergence:
    """Of the config's approximate label on these rows of a split, arrays of the dataset by name with `index`.

    Alg_E puts all its probability on the label, so that the divergence of a trajectory is -ln P_TS(label | D_T); the
    law of posterior_sample is P_TS itself, and its divergence 0.

    Raises:
        ValueError: another label, or an environment whose P_TS(. | D_T) is not computed here.
    """
    if config.expert.label != "approximate":
        raise ValueError(f"expert.label = {config.expert.label}: expected approximate")
    if config.expert.estimates_by == "posterior_sample":
        return LabelDivergence(0.0, 0.0, len(rows["action"]), "its law is P_TS(. | D_T)")
    environment = config.environment
    if reason := no_posterior(environment):
        raise ValueError(f"the divergence of the label cannot be measured: {reason}")
    label = approximate(config, rows, split)
    p = best_action(environment, history(environment, config.dataset.seed, split, rows)).probabilities
    how = "by quadrature"
    if isinstance(environment, LinearBanditConfig):
        # half a sample more for each action: a label that no sample prefers is improbable, not impossible
        p = (p * SAMPLES + 0.5) / (SAMPLES + 0.5 * p.shape[1])
        how = f"by Monte Carlo with {SAMPLES} samples of the posterior"
    nats = -np.log(played(p, label))
    spread = float(nats.std(ddof=1) / np.sqrt(len(nats))) if len(nats) > 1 else 0.0
    return LabelDivergence(float(nats.mean()), spread, len(nats), how)


def kl(p: Float64Array, q: Float64Array) -> Float64Array:
    """float64[...]: KL(p || q) in nats of distributions [..., A]; infinite where q lacks what p has."""
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0, p * (np.log(p) - np.log(q)), 0.0)
    total: Float64Array = terms.sum(axis=-1)
    return total


def hellinger(p: Float64Array, q: Float64Array) -> Float64Array:
    """float64[...]: D_H = sqrt(sum_a (sqrt(p_a) - sqrt(q_a))^2) of distributions [..., A], at most sqrt(2)."""
    distance: Float64Array = np.sqrt(((np.sqrt(p) - np.sqrt(q)) ** 2).sum(axis=-1))
    return distance
