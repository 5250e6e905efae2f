"""How well the transformer imitates its expert on trajectories it was not trained on.

Shapes: B trajectories, T rounds, A actions, d dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import icrl.envs
from eval import reduced
from eval.regret import Estimate, estimate
from icrl.config import Config, GridWorldConfig, TabularMDPConfig
from icrl.experts import LabelDivergence, labels
from icrl.loss import log_loss
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
    distance: reduced.Distance | None
    """To the reduced expert, on the first trajectories; None where there is none that can be computed."""
    approximation: LabelDivergence | None
    """Of an approximate label from posterior sampling, on the first trajectories; None for other labels."""


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
    split = Split[source.split.upper()]
    first: list[Tensor] = []
    agreed = 0
    for start in range(0, n, size):
        indices = np.arange(start, min(start + size, n), dtype=np.int64)
        rows = {"index": indices} | source.rows(slice(start, start + len(indices)))
        action, shown, reward, label = (
            torch.from_numpy(values).to(model.device)
            for values in (rows["action"], _shown(config, source, rows), rows["reward"], labels(config, rows, split))
        )
        logits = model(shown, action.long(), reward)
        losses[start : start + len(indices)] = log_loss(logits, label).double().cpu().numpy()
        agreed += int((logits.argmax(-1) == label).sum())
        if start < reduced.MOST:
            first.append(logits.double().softmax(-1).cpu())
    few = min(n, reduced.MOST)
    rows = {"index": np.arange(few, dtype=np.int64)} | source.rows(slice(0, few))
    distance = reduced.distance(config, rows, split, torch.cat(first)[:few].numpy())
    approximation = reduced.approximation(config, rows, split)
    return Imitation(n, estimate(losses.mean(axis=1)), estimate(losses), agreed / losses.size, distance, approximation)


def _shown(config: Config, source: Source, rows: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """What the environments show: the states of an MDP, else the action sets."""
    if isinstance(config.environment, TabularMDPConfig | GridWorldConfig):
        return rows["state"]
    split = Split[source.split.upper()]
    return icrl.envs.action_sets(config.environment, source.recipe["seed"], split, rows["index"])


def _batch_size(model: Transformer) -> int:
    scores = model.config.heads * model.tokenizer.n_tokens**2 * 4
    return max(1, min(512, _SCORE_BYTES // scores))
