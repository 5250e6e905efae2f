"""What keeps a training across kills: where it resumes, its checkpoints on the way, its weights at the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch.distributed as dist

import icrl.checkpoint
from icrl.config import Config
from icrl.model import Transformer
from icrl.run_dir import RunDirectory
from train import checkpoints
from train.checkpoint_writer import CheckpointWriter
from train.checkpoints import CheckpointError
from train.engine import Engine
from train.validation import BestWeights, EarlyStopping
from train.window import Window

Found = TypeVar("Found")


@dataclass
class Progress:
    """Where a training is, beside the engine's state: the same on every rank, and part of every checkpoint."""

    stopping: EarlyStopping
    step: int = 0
    """Optimiser steps made."""
    validated: int = 0
    """Step of the last validation."""
    window: Window = field(default_factory=Window)

    def state(self) -> dict[str, Any]:
        """As a checkpoint keeps it; the step is the checkpoint's own."""
        return {
            "window": self.window.state(),
            "workers": dist.get_world_size(),
            "validated": self.validated,
            "early_stopping": self.stopping.state(),
        }


class Keeper:
    """Checkpoints and weights of one training. Every rank makes one and calls its methods together; rank 0 writes."""

    def __init__(self, run: RunDirectory, config: Config, engine: Engine) -> None:
        self._run, self._config, self._engine = run, config, engine
        self._first = dist.get_rank() == 0
        self._best = BestWeights(run.path / "best", config.train.keep_checkpoints)
        self._writer = CheckpointWriter(run, config) if self._first else None
        self._saved = 0
        """Step of the last checkpoint."""

    def resume(self) -> Progress:
        """Load the newest whole checkpoint on every rank; where there is none at all, the beginning.

        Raises:
            CheckpointError: on all ranks: there are checkpoints and none can be used. They stay as they are.
        """
        progress = Progress(EarlyStopping(self._config.train.early_stopping))
        checkpoint = self._together(self._newest)
        if checkpoint is None:
            return progress
        self._engine.load_state(checkpoint.tensors(), checkpoint.step)
        kept = checkpoint.progress()
        world = dist.get_world_size()
        if self._first and kept["workers"] != world:
            say = f"resuming on {world} workers what began on {kept['workers']}: sums will round differently"
            print(say, flush=True)  # noqa: T201
        progress.step = self._saved = checkpoint.step
        progress.validated = kept.get("validated", checkpoint.step)
        progress.window = Window.of(kept["window"])
        progress.stopping = EarlyStopping.of(self._config.train.early_stopping, kept.get("early_stopping", {}))
        return progress

    @property
    def failed(self) -> bool:
        """Whether the checkpoint in flight has come to grief; known to rank 0 alone until `settle`."""
        return self._writer is not None and self._writer.failed

    def save(self, progress: Progress) -> None:
        """Copy the state to host memory, and leave the rest to the writer once the checkpoint before is written.

        Raises:
            CheckpointError: on all ranks: the one before could not be written.
        """
        self.settle()
        if self._first:  # the one before is written
            self._best.checkpointed(progress.stopping.best_step)
        tensors = self._engine.state(keep=self._first)
        if self._writer is not None:
            self._writer.start(progress.step, tensors, progress.state())
        self._saved = progress.step

    def settle(self) -> None:
        """Wait for the checkpoint in flight.

        Raises:
            CheckpointError: on all ranks: it could not be written.
        """
        self._together(self.finish)

    def stop(self, progress: Progress) -> None:
        """Leave a checkpoint of this step, written to its end.

        Raises:
            CheckpointError: on all ranks: it could not be written.
        """
        self.settle()
        if self._saved != progress.step:
            self.save(progress)
            self.settle()

    def finish(self) -> None:
        """Let the checkpoint in flight come to its end; for rank 0.

        Raises:
            OSError: it could not be written, or put where the run lies.
        """
        if self._writer is not None:
            self._writer.wait()

    def keep_best(self, step: int) -> None:
        """Keep the weights of a validation that is the best so far."""
        model = self._gathered()
        if model is not None:
            self._best.save(step, model)

    def export(self, progress: Progress) -> int:
        """Write the trained weights to the run directory: the last, or with early stopping the best; their step.

        Raises:
            ValueError: the weights of the best validation cannot be read.
        """
        self.settle()
        of, model = progress.step, self._gathered()
        if model is not None:
            if self._config.train.early_stopping.patience is not None and progress.stopping.best_loss is not None:
                of = progress.stopping.best_step
                model = self._best.load(of)
            icrl.checkpoint.save(model, self._run.path)
            self._best.keep_only(of)
        return of

    def _newest(self) -> checkpoints.Checkpoint | None:
        root = self._run.checkpoints
        checkpoints.sweep(root)
        newest, damaged = checkpoints.latest(root)
        if newest is None and damaged:
            listed = "".join(f"\n  {entry.path}: {entry.reason}" for entry in damaged)
            raise CheckpointError(
                f"{root}: expected a whole checkpoint to resume from, got {len(damaged)} damaged ones{listed}\n"
                "restore one of them, or delete the directory to begin again at step 0"
            )
        for entry in damaged:
            print(f"checkpoint {entry.path} is damaged ({entry.reason}): using an older one", flush=True)  # noqa: T201
        return newest

    def _gathered(self) -> Transformer | None:
        """The model with the weights of all ranks, on rank 0."""
        weights = self._engine.weights(keep=self._first)
        if not self._first:
            return None
        model = Transformer(self._config.model, self._config.environment)
        model.load_state_dict({name.removeprefix("transformer."): value for name, value in weights.items()})
        return model

    def _together(self, work: Callable[[], Found]) -> Found:
        """What rank 0 finds, on every rank; what it meets with is raised on every rank."""
        found: list[Any] = [None, None]
        if self._first:
            try:
                found = [work(), None]
            except OSError as error:
                found = [None, str(error)]
        dist.broadcast_object_list(found, src=0)
        if found[1] is not None:
            raise CheckpointError(found[1])
        result: Found = found[0]
        return result
