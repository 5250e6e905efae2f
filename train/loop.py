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
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

import icrl.checkpoint
from icrl.board import Board, Record
from icrl.config import Config
from icrl.constructions import hold_positions
from icrl.experts import labels
from icrl.loss import log_loss
from icrl.model import Transformer
from icrl.run_dir import RunDirectory
from icrl.source import Source, open_source
from icrl.streams import Split
from train import checkpoints, divergence
from train.batch_plan import BatchPlan
from train.checkpoint_writer import CheckpointWriter
from train.checkpoints import CheckpointError
from train.dataset import Batch, TrajectoryStream
from train.determinism import use_deterministic_kernels
from train.engine import DivergedError, Engine
from train.heartbeat import Heart, patience
from train.schedule import learning_rate
from train.validation import BestWeights, EarlyStopping, validation_loss
from train.window import Window

Outcome = Literal["trained", "stopped"]


@dataclass(frozen=True)
class Hooks:
    """What the host of the loop provides."""

    report: Callable[[int, Mapping[str, float]], None] = lambda step, metrics: None
    """Told the metrics of a validation, on every rank, the same number of times."""
    should_stop: Callable[[], bool] = lambda: False
    """Polled every step; true on any rank stops all of them after a checkpoint."""


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
        DivergedError: a loss or gradient that is not finite; the run's state is then "diverged".
        LostRankError: another rank is gone, or does not come; says which.
        CheckpointError: a checkpoint could not be written; the run resumes from the one before.
        ValueError: the dataset or a checkpoint does not fit the config.
    """
    if config.train.deterministic:
        use_deterministic_kernels()
    with run.training_lock() if dist.get_rank() == 0 else nullcontext():
        heart = _heart(config, run)
        trainer = None
        try:
            dist.barrier()
            trainer = _Trainer(config, run, hooks, heart)
            return trainer.run()
        except DivergedError as error:
            if trainer is not None:
                message = trainer.diverged(error)
                raise DivergedError(message, error.own_loss) from error
            raise
        except RuntimeError as error:
            lost = heart.explained(error)
            if lost is None:
                raise
            if heart.speaks():
                run.set_status("failed", error=str(lost))
            raise lost from error
        finally:
            heart.stop()
            if trainer is not None:
                trainer.close()


def _heart(config: Config, run: RunDirectory) -> Heart:
    _, seconds = patience(config.train.collective_timeout_s, dist.get_backend())
    heart = Heart(run.logs / "heartbeats", dist.get_rank(), dist.get_world_size(), seconds)
    heart.start()
    return heart


class _Trainer:
    def __init__(self, config: Config, run: RunDirectory, hooks: Hooks, heart: Heart) -> None:
        self.config, self.run_directory, self.hooks, self.heart = config, run, hooks, heart
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
        self.transformer.recompute = config.train.activation_checkpointing
        self.n_tokens = self.transformer.tokenizer.n_tokens
        if (start := icrl.checkpoint.starting_point(config)) is not None:
            icrl.checkpoint.start_from(self.transformer, start)
        if config.train.hold_positions:
            hold_positions(self.transformer)
        self.engine = Engine(LossModule(self.transformer), config.train, self.plan)
        self.window = Window()
        self.stopping = EarlyStopping(config.train.early_stopping)
        self.best = BestWeights(run.path / "best", config.train.keep_checkpoints)
        self.validated = 0
        """Step of the last validation."""
        self.step = self._resume()
        self.saved = self.step
        self.board = self._open_board() if self.rank == 0 else None
        self.writer = CheckpointWriter(run, config) if self.rank == 0 else None

    def run(self) -> Outcome:
        train = self.config.train
        if self.rank == 0:
            divergence.forget(self.run_directory)
            self.run_directory.set_status("training", step=self.step, steps=train.steps, workers=self.world)
        if self._due(train.validate_every) and self.validated < self.step and not self._validate():
            return self._stop()  # what a request to stop had cut short, and now does again
        while self.step < train.steps and not self.stopping.over:
            if self._agree(self.hooks.should_stop() or self._unwritten()):
                return self._stop()
            self._advance()
            if self._due(train.log_every):
                self._log()
            if self._due(train.validate_every) and not self._validate():
                return self._stop()
            if self._due(train.checkpoint_every) or self.stopping.over:
                self._save()
        self._export()
        return "trained"

    def close(self) -> None:
        self.stream.close()
        self.finish_writing()
        if self.board is not None:
            self.board.close()

    def diverged(self, error: DivergedError) -> str:
        """Record what is known about a step that was not made; every rank calls it. What to tell the user."""
        batch, trajectories = self.stream.batch(self.step), self.stream.indices(self.step)
        message = divergence.record(self.run_directory, error, self.step, batch, trajectories)
        if self.board is not None:
            self.finish_writing()  # it sets the status too
            self.board.scalars(self.step + 1, {"train/loss": float("nan")})
            self.run_directory.set_status("diverged", step=self.step, error=message)
        return message

    def _due(self, every: int) -> bool:
        return self.step > 0 and (self.step % every == 0 or self.step == self.config.train.steps)

    def _advance(self) -> None:
        """One optimiser step."""
        began = time.perf_counter()
        self.heart.at(self.step, "reading data")
        batches = list(self._micro_batches(self.step))
        waited = time.perf_counter() - began
        self.heart.at(self.step, "training")
        result = self.engine.step(batches, learning_rate(self.config.train, self.step))
        self.step += 1
        self.window.add(result, waited)

    def finish_writing(self) -> None:
        """Let the checkpoint in flight come to its end, whatever ended training."""
        try:
            if self.writer is not None:
                self.writer.wait()
        except OSError as error:  # something else is being raised already
            print(error, flush=True)  # noqa: T201

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
        self.window = Window.of(progress["window"])
        self.stopping = EarlyStopping.of(self.config.train.early_stopping, progress.get("early_stopping", {}))
        self.validated = progress.get("validated", checkpoint.step)
        return checkpoint.step

    def _progress(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the engine's state."""
        return {
            "window": self.window.state(),
            "workers": self.world,
            "validated": self.validated,
            "early_stopping": self.stopping.state(),
        }

    def _open_board(self) -> Board:
        start, validated = self.step, self.validated

        def keep(record: Record) -> bool:
            again = record["step"] > validated and "train/validation_loss" in record["tags"]
            return record["step"] <= start and not again

        return Board(self.run_directory, keep)

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
        window, self.window = self.window, Window()
        if self.board is not None:
            tags = window.tags(self.plan.global_batch, self.n_tokens) | {
                "train/learning_rate": learning_rate(self.config.train, self.step - 1),
                "data/epoch": self.step / self.stream.steps_per_epoch,
            }
            self.board.scalars(self.step, tags)

    @torch.no_grad()
    def _validate(self) -> bool:
        """The validation log-loss, and what follows from it; False where a request to stop cut it short."""
        self.heart.at(self.step, "validating")
        loss = validation_loss(
            self.engine,
            self.validation,
            self.config.environment,
            lambda batch: self._tensors(batch, Split.VALIDATION),
            lambda: self._agree(self.hooks.should_stop()),
            together=self.config.train.zero_stage == 3,
        )
        if loss is None:
            return False
        self.validated = self.step
        if self.board is not None:
            self.board.scalars(self.step, {"train/validation_loss": loss})
        if self.stopping.improves(self.step, loss) and self.config.train.early_stopping.patience is not None:
            model = self._gathered()
            if self.rank == 0:
                self.best.save(self.step, model)
        self.hooks.report(self.step, {"step": self.step, "validation_loss": loss})
        return True

    def _save(self) -> None:
        """Copy the state to host memory, and leave the rest to the writer once the checkpoint before is written."""
        began = time.perf_counter()
        self.heart.at(self.step, "saving")
        self._settle()
        if self.rank == 0:  # the one before is written
            self.best.checkpointed(self.stopping.best_step)
        tensors = self.engine.state()
        if self.writer is not None:
            self.writer.start(self.step, tensors, self._progress())
        self.saved = self.step
        self.window.stalled += time.perf_counter() - began

    def _unwritten(self) -> bool:
        return self.writer is not None and self.writer.failed

    def _settle(self) -> None:
        """Wait for the checkpoint in flight; what its writer met with is raised on every rank.

        Raises:
            CheckpointError: on all ranks.
        """
        met: list[str | None] = [None]
        if self.writer is not None:
            try:
                self.writer.wait()
            except OSError as error:
                met = [str(error)]
        dist.broadcast_object_list(met, src=0)
        if met[0] is not None:
            raise CheckpointError(met[0])

    def _stop(self) -> Outcome:
        self._settle()
        if self.saved != self.step:
            self._save()
            self._settle()
        if self.rank == 0:
            self.run_directory.set_status("stopped", step=self.step, steps=self.config.train.steps, workers=self.world)
        return "stopped"

    def _export(self) -> None:
        """Write the trained weights to the run directory, then its state: from here on it can be evaluated."""
        self.heart.at(self.step, "saving")
        self._settle()
        model, of = self._gathered(), self.step
        if self.board is not None:
            self.board.flush()
            if self.config.train.early_stopping.patience is not None and self.stopping.best_loss is not None:
                of = self.stopping.best_step
                model = self.best.load(of)
            icrl.checkpoint.save(model, self.run_directory.path)
            self.run_directory.set_status("trained", step=self.step, steps=self.step, workers=self.world, weights_of=of)
            self.best.clear()
        dist.barrier()

    def _gathered(self) -> Transformer:
        """The model with the weights of all ranks; they call it together."""
        model = Transformer(self.config.model, self.config.environment)
        weights = self.engine.weights()
        model.load_state_dict({name.removeprefix("transformer."): value for name, value in weights.items()})
        return model

    def _agree(self, mine: bool) -> bool:  # noqa: FBT001
        """Whether any rank says yes."""
        if self.world == 1:
            return mine
        flag = torch.tensor([float(mine)], device=self.engine.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())
