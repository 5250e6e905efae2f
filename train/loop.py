"""The training loop: supervised pretraining (Eq. 3) from a dataset into a run directory, resumable at any moment.

Knows no Ray and spawns nothing: the process group exists when `pretrain` is called, and the host hands it its hooks.
Everything that decides an update is a function of (config, step, world size); checkpoints lie in the run directory
alone.

Shapes: B trajectories of a micro-batch, T rounds, A actions, d dim.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

import icrl.checkpoint
from icrl.board import Board
from icrl.config import Config
from icrl.constructions import hold_positions
from icrl.experts import labels
from icrl.loss import log_loss
from icrl.model import Transformer
from icrl.run_dir import RunDirectory
from icrl.source import Source, open_source
from icrl.streams import Split
from train import checkpoints
from train.dataset import Batch, TrajectoryStream, batches_in_order
from train.engine import BatchPlan, DivergedError, Engine
from train.schedule import learning_rate

Outcome = Literal["trained", "stopped"]

_VALIDATION_BATCH = 512
"""Trajectories of a forward pass without gradients."""


@dataclass(frozen=True)
class Hooks:
    """What the host of the loop provides."""

    report: Callable[[int, Mapping[str, float]], None] = lambda step, metrics: None
    """Told the metrics of a validation, on every rank, the same number of times."""
    should_stop: Callable[[], bool] = lambda: False
    """Polled every step; true on any rank stops all of them after a checkpoint."""


@dataclass
class _Window:
    """Training metrics since the last record; part of the checkpoint, so that a resumed record is the same."""

    loss: float = 0.0
    grad_norm: float = 0.0
    steps: int = 0
    started: float = field(default_factory=time.perf_counter)

    def add(self, loss: float, grad_norm: float) -> None:
        self.loss += loss
        self.grad_norm += grad_norm
        self.steps += 1


class LossModule(nn.Module):
    """The transformer with its objective: mean negative log-likelihood of the labels, nats per round."""

    def __init__(self, transformer: Transformer) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, shown: Tensor, action: Tensor, reward: Tensor, label: Tensor) -> Tensor:
        """Scalar mean over action set [B,A,d] or states [B,T], action [B,T], reward [B,T] and label [B,T]."""
        return log_loss(self.transformer(shown, action, reward), label).mean()


def open_dataset(config: Config) -> dict[str, Source]:
    """The splits that training reads.

    Raises:
        ValueError: the dataset is missing, half-written, or of another recipe; the message says what to do.
    """
    return {split: open_source(config, split) for split in ("train", "validation")}


def pretrain(config: Config, run: RunDirectory, hooks: Hooks) -> Outcome:
    """Train to `train.steps`, or until the host asks to stop; a second call goes on where the last checkpoint is.

    Every rank calls it. Rank 0 writes the run directory.

    Raises:
        DivergedError: a loss that is not finite; the run's state is then "diverged".
        ValueError: the dataset or a checkpoint does not fit the config.
    """
    with run.training_lock() if dist.get_rank() == 0 else nullcontext():
        dist.barrier()
        trainer = _Trainer(config, run, hooks)
        try:
            return trainer.run()
        except DivergedError as error:
            if trainer.rank == 0:
                run.set_status("diverged", step=trainer.step, error=str(error))
            raise
        finally:
            trainer.close()


class _Trainer:
    def __init__(self, config: Config, run: RunDirectory, hooks: Hooks) -> None:
        self.config, self.run_directory, self.hooks = config, run, hooks
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.plan = BatchPlan.of(config.train, self.world)
        sources = open_dataset(config)
        self.validation = sources["validation"]
        self.stream = TrajectoryStream(
            sources["train"],
            config.environment,
            global_batch=config.train.global_batch,
            seed=config.train.seed,
            rank=self.rank,
            world_size=self.world,
            fresh=config.dataset.fresh,
            prefetch=config.train.steps,
        )
        self.transformer = Transformer(config.model, config.environment, seed=config.train.seed)
        if (start := icrl.checkpoint.starting_point(config)) is not None:
            icrl.checkpoint.start_from(self.transformer, start)
        if config.train.hold_positions:
            hold_positions(self.transformer)
        self.engine = Engine(LossModule(self.transformer), config.train, self.plan)
        self.window = _Window()
        self.step = self._resume()
        self.saved = self.step
        self.board = self._open_board() if self.rank == 0 else None

    def run(self) -> Outcome:
        train = self.config.train
        if self.rank == 0:
            self.run_directory.set_status("training", step=self.step, steps=train.steps, workers=self.world)
        while self.step < train.steps:
            if self._agree(self.hooks.should_stop()):
                return self._stop()
            result = self.engine.step(self._micro_batches(self.step), learning_rate(train, self.step))
            self.step += 1
            self.window.add(result.loss, result.grad_norm)
            last = self.step == train.steps
            if self.step % train.log_every == 0 or last:
                self._log()
            if self.step % train.validate_every == 0 or last:
                self._validate()
            if self.step % train.checkpoint_every == 0 or last:
                self._save()
        self._export()
        return "trained"

    def close(self) -> None:
        self.stream.close()
        if self.board is not None:
            self.board.close()

    def _resume(self) -> int:
        """Load the newest whole checkpoint on every rank and return its step."""
        root = self.run_directory.checkpoints
        found = [None]
        if self.rank == 0:
            checkpoints.sweep(root)
            newest, damaged = checkpoints.latest(root)
            for entry in damaged:
                print(f"checkpoint {entry.path} is damaged ({entry.reason}): using an older one", flush=True)  # noqa: T201
            found = [newest]  # type: ignore[list-item]
        dist.broadcast_object_list(found, src=0)
        checkpoint: checkpoints.Checkpoint | None = found[0]
        if checkpoint is None:
            return 0
        self.engine.load_state(checkpoint.tensors(), checkpoint.step)
        progress = checkpoint.progress()
        if self.rank == 0 and progress["workers"] != self.world:
            say = f"resuming on {self.world} workers what began on {progress['workers']}: sums will round differently"
            print(say, flush=True)  # noqa: T201
        kept = progress["window"]
        self.window = _Window(kept["loss"], kept["grad_norm"], kept["steps"])
        return checkpoint.step

    def _open_board(self) -> Board:
        start = self.step
        return Board(self.run_directory, keep=lambda record: record["step"] <= start)

    def _micro_batches(self, step: int) -> Iterator[tuple[Tensor, ...]]:
        batch = self.stream.batch(step)
        size = self.plan.micro_batch
        for start in range(0, size * self.plan.accumulation, size):
            part = {name: values[start : start + size] for name, values in batch.items()}
            yield self._tensors(part, Split.TRAIN)

    def _tensors(self, batch: Batch, split: Split) -> tuple[Tensor, ...]:
        device = self.engine.device
        return (
            torch.from_numpy(np.array(batch["state"] if "state" in batch else batch["action_set"])).to(device),
            torch.from_numpy(batch["action"].astype(np.int64)).to(device),
            torch.from_numpy(np.array(batch["reward"])).to(device),
            torch.from_numpy(labels(self.config, batch, split)).to(device),
        )

    def _log(self) -> None:
        window, self.window = self.window, _Window()
        if self.board is None:
            return
        seconds = time.perf_counter() - window.started
        epoch = self.step / self.stream.steps_per_epoch
        self.board.scalars(
            self.step,
            {
                "train/loss": window.loss / window.steps,
                "train/grad_norm": window.grad_norm / window.steps,
                "train/learning_rate": learning_rate(self.config.train, self.step - 1),
                "data/epoch": epoch,
                "perf/trajectories_per_second": window.steps * self.plan.global_batch / seconds,
            },
        )

    @torch.no_grad()
    def _validate(self) -> None:
        """Mean log-loss on the validation split, divided over the ranks."""
        total = torch.zeros(2, dtype=torch.float64)
        batches = batches_in_order(self.validation, self.config.environment, _VALIDATION_BATCH)
        for number, batch in enumerate(batches):
            # under ZeRO-3 every rank must run the same forward passes; others then count for nothing
            mine = number % self.world == self.rank
            if mine or self.config.train.zero_stage == 3:
                size = len(batch["action"])
                loss = self.engine.evaluate(self._tensors(batch, Split.VALIDATION))
                total += torch.tensor([loss * size, size], dtype=torch.float64) * mine
        if self.world > 1:
            total = total.to(self.engine.device)
            dist.all_reduce(total)
        loss = float(total[0] / total[1])
        if self.board is not None:
            self.board.scalars(self.step, {"train/validation_loss": loss})
        self.hooks.report(self.step, {"step": self.step, "validation_loss": loss})

    def _save(self) -> None:
        tensors = self.engine.state()
        if self.rank == 0:
            window = {"loss": self.window.loss, "grad_norm": self.window.grad_norm, "steps": self.window.steps}
            progress: dict[str, Any] = {"window": window, "workers": self.world}
            checkpoints.save(
                self.run_directory.checkpoints, self.step, tensors, progress, self.config.train.keep_checkpoints
            )
            self.run_directory.set_status("training", step=self.step, steps=self.config.train.steps, workers=self.world)
        self.saved = self.step

    def _stop(self) -> Outcome:
        if self.saved != self.step:
            self._save()
        if self.rank == 0:
            self.run_directory.set_status("stopped", step=self.step, steps=self.config.train.steps, workers=self.world)
        return "stopped"

    def _export(self) -> None:
        """Write the trained weights to the run directory, then its state: from here on it can be evaluated."""
        weights = self.engine.weights()
        if self.board is not None:
            self.board.flush()
            fresh = Transformer(self.config.model, self.config.environment)
            fresh.load_state_dict({name.removeprefix("transformer."): value for name, value in weights.items()})
            icrl.checkpoint.save(fresh, self.run_directory.path)
            self.run_directory.set_status("trained", step=self.step, steps=self.step, workers=self.world)
        dist.barrier()

    def _agree(self, mine: bool) -> bool:  # noqa: FBT001
        """Whether any rank says yes."""
        if self.world == 1:
            return mine
        flag = torch.tensor([float(mine)], device=self.engine.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())
