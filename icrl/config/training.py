"""The section `train` of a config: the optimiser, its schedule, and how a run is divided, kept and guarded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from icrl.config.places import directory_problems
from icrl.config.sections import AtLeast, AtMost, Count, NonNegative, Positive, PositiveInt, Problem, Section, Seed


@dataclass(frozen=True)
class OptimizerConfig(Section):
    """AdamW."""

    lr: Positive = 1e-3
    """Peak learning rate."""
    weight_decay: NonNegative = 1e-4
    """Decoupled weight decay."""
    beta1: Annotated[float, AtLeast(0), AtMost(0.9999)] = 0.9
    beta2: Annotated[float, AtLeast(0), AtMost(0.99999)] = 0.999


@dataclass(frozen=True)
class ScheduleConfig(Section):
    """Learning rate against the step."""

    kind: Literal["cosine", "constant"] = "cosine"
    """After the warm-up: cosine decays to `floor` times the peak at the last step, constant stays."""
    warmup: Count = 200
    """Steps of linear warm-up."""
    floor: Annotated[float, AtLeast(0), AtMost(1)] = 0.0
    """Final learning rate of cosine, as a fraction of the peak."""


@dataclass(frozen=True)
class TrainConfig(Section):
    """Supervised pretraining (Eq. 3)."""

    steps: PositiveInt = 20_000
    """Optimiser steps."""
    global_batch: PositiveInt = 128
    """Trajectories in a step, over all workers."""
    micro_batch: PositiveInt | Literal["auto"] = "auto"
    """Trajectories in one forward pass of one worker; auto: global_batch / workers, no accumulation."""
    workers: PositiveInt | Literal["auto"] = "auto"
    """Processes; auto: one per GPU, or 2 on CPU."""
    threads: PositiveInt = 1
    """Torch threads of a worker on CPU; a number of the config, so that sums do not depend on the machine."""
    seed: Seed = 0
    """Seeds the weights and the order of the data."""
    init_from: str | None = None
    """Directory with model.safetensors (a run, or what icrl.checkpoint.save wrote) whose weights training starts from;
    null: random ones."""
    hold_positions: bool = False
    """Preset theory: what reads i and i^2 stays as it is. A construction's gates do not survive fine-tuning without."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: torch autocast over fp32 parameters."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO stage."""
    clip: NonNegative = 1.0
    """Largest norm of the global gradient; 0: no clipping."""
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    checkpoint_every: PositiveInt = 500
    """Steps between checkpoints."""
    keep_checkpoints: PositiveInt = 2
    """Newest checkpoints kept."""
    log_every: PositiveInt = 20
    """Steps between records of the training metrics."""
    validate_every: PositiveInt = 500
    """Steps between validation log-losses."""
    max_failures: Count = 3
    """Restarts of the worker group under Ray Train before the run fails."""

    def problems(self) -> Iterator[Problem]:
        yield from directory_problems("init_from", self.init_from)
        if self.schedule.warmup >= self.steps:
            yield Problem("schedule.warmup", self.schedule.warmup, f"fewer than train.steps ({self.steps})")
        if isinstance(self.workers, int):
            yield from batch_problems(self, self.workers)


def batch_problems(train: TrainConfig, workers: int) -> Iterator[Problem]:
    """Why `global_batch` cannot be divided over `workers`, if it cannot."""
    if train.global_batch % workers:
        near = max(workers, train.global_batch // workers * workers)
        yield Problem(
            "global_batch",
            train.global_batch,
            f"a multiple of train.workers ({workers})",
            f"take train.global_batch={near}",
        )
    elif isinstance(train.micro_batch, int) and (train.global_batch // workers) % train.micro_batch:
        share = train.global_batch // workers
        yield Problem(
            "micro_batch",
            train.micro_batch,
            f"a divisor of a worker's share ({share} = {train.global_batch} / {workers})",
        )
