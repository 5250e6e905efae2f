"""The validation log-loss, over all ranks and open to a request to stop; and when it says that training is over."""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import icrl.checkpoint
from icrl.config import EarlyStoppingConfig, EnvironmentConfig
from icrl.model import Transformer
from icrl.source import Source
from train.dataset import Batch, batches_in_order
from train.engine import Engine

_BATCH = 512
"""Trajectories of a forward pass without gradients."""


def validation_loss(
    engine: Engine,
    source: Source,
    environment: EnvironmentConfig,
    tensors: Callable[[Batch], tuple[Tensor, ...]],
    interrupted: Callable[[], bool],
    *,
    together: bool,
) -> float | None:
    """Mean log-loss on a split, nats per round, divided over the ranks; the same on all of them.

    `interrupted` is asked by all ranks together, before each round of one batch a rank; if it says so the result is
    None. `together`: every rank runs every forward pass, as ZeRO-3 needs it.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    total = torch.zeros(2, dtype=torch.float64)
    for number, batch in enumerate(batches_in_order(source, environment, _BATCH)):
        if number % world == 0 and interrupted():
            return None
        mine = number % world == rank
        if mine or together:
            size = len(batch["action"])
            loss = engine.evaluate(tensors(batch))
            total += torch.tensor([loss * size, size], dtype=torch.float64) * mine
    if world > 1:
        total = total.to(engine.device)
        dist.all_reduce(total)
    return float(total[0] / total[1])


@dataclass
class EarlyStopping:
    """Watches the validation log-loss. Its state is part of the checkpoint, the same on every rank."""

    config: EarlyStoppingConfig
    best_loss: float | None = None
    best_step: int = 0
    without: int = 0
    """Validations in a row that did not improve on the best."""

    @staticmethod
    def of(config: EarlyStoppingConfig, state: Mapping[str, Any]) -> EarlyStopping:
        """As it was when `state` was taken."""
        return EarlyStopping(config, state.get("best_loss"), state.get("best_step", 0), state.get("without", 0))

    def state(self) -> dict[str, Any]:
        return {"best_loss": self.best_loss, "best_step": self.best_step, "without": self.without}

    @property
    def over(self) -> bool:
        """Whether training has come to its end."""
        return self.config.patience is not None and self.without >= self.config.patience

    def improves(self, step: int, loss: float) -> bool:
        """Take in the validation log-loss of a step; whether it is the best so far."""
        if self.best_loss is None or loss < self.best_loss - self.config.min_delta:
            self.best_loss, self.best_step, self.without = loss, step, 0
            return True
        self.without += 1
        return False


class BestWeights:
    """The weights of the best validations, each in a directory of its own: best/step-00000500/.

    A run that resumes may go back to an earlier best, so one is deleted only when no checkpoint that is kept was
    written while it was the best.
    """

    def __init__(self, root: Path, checkpoints_kept: int) -> None:
        self._root = root
        self._best_of_checkpoints: deque[int] = deque(maxlen=checkpoints_kept + 1)

    def save(self, step: int, model: Transformer) -> None:
        icrl.checkpoint.save(model, self._at(step))

    def load(self, step: int) -> Transformer:
        """The weights of the validation at `step`.

        Raises:
            ValueError: they are not there, or damaged.
        """
        try:
            return icrl.checkpoint.load(self._at(step))
        except ValueError as error:
            raise ValueError(
                f"the weights of the best validation, of step {step}, cannot be read ({error}), and lie nowhere else; "
                "train again in another run.dir"
            ) from None

    def checkpointed(self, best: int) -> None:
        """A checkpoint was written whose best step is this one."""
        self._best_of_checkpoints.append(best)
        if len(self._best_of_checkpoints) == self._best_of_checkpoints.maxlen:
            oldest = self._at(self._best_of_checkpoints[0])
            for path in self._root.glob("step-*"):
                if path < oldest:
                    shutil.rmtree(path)

    def keep_only(self, step: int) -> None:
        """Delete those of all other steps."""
        for path in self._root.glob("step-*"):
            if path != self._at(step):
                shutil.rmtree(path, ignore_errors=True)

    def _at(self, step: int) -> Path:
        return self._root / f"step-{step:08d}"
