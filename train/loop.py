"""The training loop: supervised pretraining (Eq. 3) from a dataset into a run directory, resumable at any moment.

Knows no Ray and spawns nothing: the process group exists when `pretrain` is called, and the host hands it its hooks.
Everything that decides an update is a function of (config, step, world size); checkpoints lie in the run directory
alone.

Shapes: B trajectories of a micro-batch, T rounds, A actions, d dim.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Literal

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
from icrl.run_dir import RunDirectory, State
from icrl.source import Source, open_source
from icrl.streams import Split
from train import divergence
from train.batch_plan import BatchPlan
from train.dataset import Batch, TrajectoryStream
from train.determinism import use_deterministic_kernels
from train.engine import DivergedError, Engine
from train.heartbeat import Heart, patience
from train.keeper import Keeper
from train.schedule import learning_rate
from train.validation import validation_loss
from train.window import Window

Outcome = Literal["trained", "stopped"]


@dataclass(frozen=True)
class Hooks:
    """What the host of the loop provides."""

    report: Callable[[int, Mapping[str, float]], None] = lambda step, metrics: None
    """Told the metrics of a validation, on every rank, the same number of times."""
    should_stop: Callable[[], bool] = lambda: False
    """Polled every step; true on any rank stops all of them after a checkpoint."""
    failed: Callable[[str], None] = lambda message: None
    """Told why the training failed, on the rank that is to say so."""


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
        DivergedError: a loss, gradient or validation log-loss that is not finite; the run's state is then "diverged".
        LostRankError: another rank is gone, or does not come; says which.
        CheckpointError: a checkpoint could not be written, or none of those there can be read; nothing is lost.
        ValueError: the dataset or a checkpoint does not fit the config.
    """
    if config.train.deterministic:
        use_deterministic_kernels()
    with run.training_lock() if dist.get_rank() == 0 else nullcontext():
        heart = _heart(config, run)
        with _reporting(run, hooks, heart), ExitStack() as stack:
            dist.barrier()
            trainer = stack.enter_context(closing(_Trainer(config, run, hooks, heart)))
            try:
                return trainer.run()
            except DivergedError as error:
                raise DivergedError(trainer.diverged(error), error.own_loss) from error


@contextmanager
def _reporting(run: RunDirectory, hooks: Hooks, heart: Heart) -> Iterator[None]:
    """What ends the training by an error is said once, by the rank that knows most about it, and kept in the status."""
    try:
        yield
    except DivergedError as error:
        heart.stop()
        if dist.get_rank() == 0:
            hooks.failed(str(error))
        raise
    except Exception as error:
        lost = heart.explained(error) if isinstance(error, RuntimeError) else None
        if lost is None:
            heart.stop(f"{type(error).__name__}: {error}")
        message = str(lost or error)
        if heart.speaks():
            hooks.failed(message)
            with suppress(OSError):  # on a full disk the status stays what it was
                run.set_status("failed", error=message.partition("\n")[0])
        if lost is None:
            raise
        raise lost from error
    finally:
        heart.stop()


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
        self.keeper = Keeper(run, config, self.engine)
        self.progress = self.keeper.resume()
        self.board = self._open_board() if self.rank == 0 else None

    def run(self) -> Outcome:
        train, progress = self.config.train, self.progress
        if self.rank == 0:
            divergence.forget(self.run_directory)
            self._set_status("training")
        if self._due(train.validate_every) and progress.validated < progress.step and not self._validate():
            return self._stop()  # what a request to stop had cut short, and now does again
        while progress.step < train.steps and not progress.stopping.over:
            if self._agree(self.hooks.should_stop() or self.keeper.failed):
                return self._stop()
            self._advance()
            if self._due(train.log_every):
                self._log()
            if self._due(train.validate_every) and not self._validate():
                return self._stop()
            if self._due(train.checkpoint_every) or progress.stopping.over:
                self._save()
        self._export()
        return "trained"

    def close(self) -> None:
        self.stream.close()
        self._finish_writing()
        if self.board is not None:
            self.board.close()

    def diverged(self, error: DivergedError) -> str:
        """Record what is known about a step that was not made; every rank calls it. What to tell the user."""
        step = self.progress.step
        self._finish_writing()  # it sets the status too; the other ranks wait for this one
        batch, trajectories = self.stream.batch(step), self.stream.indices(step)
        message = divergence.record(self.run_directory, error, step, batch, trajectories)
        if self.board is not None:
            if error.own_loss is not None:
                self.board.scalars(step + 1, {"train/loss": float("nan")})
            self.run_directory.set_status("diverged", step=step, error=message)
        return message

    def _due(self, every: int) -> bool:
        return self.progress.step > 0 and (
            self.progress.step % every == 0 or self.progress.step == self.config.train.steps
        )

    def _set_status(self, state: State, **details: int) -> None:
        step, steps = self.progress.step, self.config.train.steps
        self.run_directory.set_status(state, step=step, steps=steps, workers=self.world, **details)

    def _at(self, phase: str) -> None:
        self.heart.at(self.progress.step, phase)

    def _advance(self) -> None:
        """One optimiser step."""
        step = self.progress.step
        began = time.perf_counter()
        self._at("reading data")
        batches = list(self._micro_batches(step))
        waited = time.perf_counter() - began
        self._at("training")
        result = self.engine.step(batches, learning_rate(self.config.train, step))
        self.progress.step += 1
        self.progress.window.add(result, waited)

    def _finish_writing(self) -> None:
        """Let the checkpoint in flight come to its end, whatever ended training."""
        try:
            self.keeper.finish()
        except OSError as error:  # something else is being raised already
            print(error, flush=True)  # noqa: T201

    def _open_board(self) -> Board:
        start, validated = self.progress.step, self.progress.validated

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
        window, self.progress.window = self.progress.window, Window()
        if self.board is not None:
            tags = window.tags(self.plan.global_batch, self.n_tokens) | {
                "train/learning_rate": learning_rate(self.config.train, self.progress.step - 1),
                "data/epoch": self.progress.step / self.stream.steps_per_epoch,
            }
            self.board.scalars(self.progress.step, tags)

    @torch.no_grad()
    def _validate(self) -> bool:
        """The validation log-loss, and what follows from it; False where a request to stop cut it short."""
        self._at("validating")
        progress = self.progress
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
        progress.validated = progress.step
        if self.board is not None:
            self.board.scalars(progress.step, {"train/validation_loss": loss})
        if not math.isfinite(loss):
            raise DivergedError(f"the validation log-loss is {loss}")
        if progress.stopping.improves(progress.step, loss) and self.config.train.early_stopping.patience is not None:
            self.keeper.keep_best(progress.step)
        self.hooks.report(progress.step, {"step": progress.step, "validation_loss": loss})
        return True

    def _save(self) -> None:
        began = time.perf_counter()
        self._at("saving")
        self.keeper.save(self.progress)
        self.progress.window.stalled += time.perf_counter() - began

    def _stop(self) -> Outcome:
        self._at("saving")
        self.keeper.stop(self.progress)
        if self.rank == 0:
            self._set_status("stopped")
        return "stopped"

    def _export(self) -> None:
        """Write the trained weights to the run directory, then its state: from here on it can be evaluated."""
        self._at("saving")
        if self.board is not None:
            self.board.flush()
        of = self.keeper.export(self.progress)
        if self.rank == 0:
            self._set_status("trained", weights_of=of)
        dist.barrier()

    def _agree(self, mine: bool) -> bool:  # noqa: FBT001
        """Whether any rank says yes."""
        if self.world == 1:
            return mine
        flag = torch.tensor([float(mine)], device=self.engine.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())
