"""How well the transformer imitates its expert on trajectories it was not trained on.

Shapes: B trajectories, T rounds, A actions, d dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

import icrl.envs
from eval.regret import Estimate, estimate
from icrl.config import Config
from icrl.loss import labels, log_loss
from icrl.model import Transformer
from icrl.source import Source, open_source
from icrl.streams import Split

MAX_TRAJECTORIES = 4096
"""Trajectories of the test split that are used, the first ones: more would only narrow the interval."""

_SCORE_BYTES = 2**27
"""Most memory for the attention scores of one forward pass, were they all kept."""


@dataclass(frozen=True)
class Imitation:
    """Agreement with the labels of the test split."""

    trajectories: int
    log_loss: Estimate
    """-log Alg_theta(label | history) in nats, mean over the rounds of a trajectory."""
    log_loss_by_round: Estimate
    """The same at every round, [T]."""
    agreement: float
    """Share of rounds in which the most likely action is the label."""


def open_test_split(config: Config) -> Source:
    """The test split of the config's dataset.

    Raises:
        ValueError: there is none; says why, and what makes it.
    """
    if config.dataset.test < 2:
        raise ValueError(f"dataset.test = {config.dataset.test}: expected at least 2 test trajectories")
    return open_source(config, "test")


@torch.inference_mode()
def evaluate(config: Config, model: Transformer, source: Source, *, batch: int | None = None) -> Imitation:
    """Log-loss and agreement over the first trajectories of a split. `batch` None: what memory allows."""
    n = min(MAX_TRAJECTORIES, source.n)
    size = batch or _batch_size(model)
    losses = np.empty((n, config.environment.horizon))
    agreed = 0
    for start in range(0, n, size):
        indices = np.arange(start, min(start + size, n), dtype=np.int64)
        rows = source.rows(slice(start, start + len(indices)))
        action_sets = icrl.envs.action_sets(
            model.environment, source.recipe["seed"], Split[source.split.upper()], indices
        )
        action, optimal, action_set, reward = (
            torch.from_numpy(values).to(model.device)
            for values in (rows["action"], rows["optimal_action"], action_sets, rows["reward"])
        )
        label = labels(action, optimal, config.expert.label)
        logits = model(action_set, action.long(), reward)
        losses[start : start + len(indices)] = log_loss(logits, label).double().cpu().numpy()
        agreed += int((logits.argmax(-1) == label).sum())
    return Imitation(n, estimate(losses.mean(axis=1)), estimate(losses), agreed / losses.size)


def _batch_size(model: Transformer) -> int:
    scores = model.config.heads * model.tokenizer.n_tokens**2 * 4
    return max(1, min(512, _SCORE_BYTES // scores))
