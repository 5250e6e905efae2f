"""Experts (paper, section 1): labels as views of a trajectory, reduced experts, and how far a label is from them.

Knows environments, algorithms and replay; no dataset, no transformer.
"""

from icrl.experts.choose import (
    ReducedExpert,
    context_algorithm,
    is_posterior_sampling,
    posterior_sampling,
    reduced_expert,
    sees_environment,
)
from icrl.experts.divergence import LabelDivergence, hellinger, kl, label_divergence
from icrl.experts.labels import approximate, labels
from icrl.experts.posterior import BestAction, best_action, no_posterior
from icrl.experts.reduced import TrajectoryMixture, smoothed

__all__ = [
    "BestAction",
    "LabelDivergence",
    "ReducedExpert",
    "TrajectoryMixture",
    "approximate",
    "best_action",
    "context_algorithm",
    "hellinger",
    "is_posterior_sampling",
    "kl",
    "label_divergence",
    "labels",
    "no_posterior",
    "posterior_sampling",
    "reduced_expert",
    "sees_environment",
    "smoothed",
]
