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

    kind: Literal["cosine", "wsd", "constant"] = "cosine"
    """After the warm-up: cosine decays to `floor` times the peak at the last step; wsd stays at the peak and decays
    linearly to it over the last part of the steps; constant stays."""
    warmup: Count = 200
    """Steps of linear warm-up."""
    decay: Annotated[float, AtLeast(0), AtMost(1)] = 0.2
    """The part of all steps over which wsd decays."""
    floor: Annotated[float, AtLeast(0), AtMost(1)] = 0.0
    """Final learning rate of cosine and wsd, as a fraction of the peak."""


@dataclass(frozen=True)
class EarlyStoppingConfig(Section):
    """The end of a training whose validation log-loss no longer falls; the best weights are then the trained ones."""

    patience: PositiveInt | None = None
    """Validations in a row without an improvement after which the training ends; null: never."""
    min_delta: NonNegative = 0.0
    """Smallest fall of the validation log-loss, in nats a round, that counts as an improvement."""


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
    deterministic: bool = False
    """On GPUs: only kernels that give the same bits every time, some of them slower. On CPU it is so without it."""
    init_from: str | None = None
    """Directory with model.safetensors (a run, or what icrl.checkpoint.save wrote) whose weights training starts from;
    null: random ones."""
    hold_positions: bool = False
    """Preset theory: what reads i and i^2 stays as it is. A construction's gates do not survive fine-tuning without."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """bf16: torch autocast over fp32 parameters; fp16: half-precision parameters with fp32 masters and dynamic loss
    scaling, on GPUs."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO stage."""
    offload: Literal["none", "optimizer"] = "none"
    """optimizer: masters and Adam's moments are kept, and updated, in the memory of the host."""
    activation_checkpointing: bool = False
    """Keep only the input of each layer for the backward pass and compute the rest of it again: less memory, a third
    more work, the same numbers."""
    compile: bool = False
    """Compile the model with torch.compile; needs a C++ compiler on CPU, and a minute before the first step."""
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
    early_stopping: EarlyStoppingConfig = EarlyStoppingConfig()
    max_failures: Count = 3
    """Restarts of the worker group under Ray Train before the run fails."""
    collective_timeout_s: Annotated[int, AtLeast(5), AtMost(86_400)] = 600
    """Seconds that a worker waits for the others before it gives them up."""

    def problems(self) -> Iterator[Problem]:
        yield from directory_problems("init_from", self.init_from)
        if self.schedule.warmup >= self.steps:
            yield Problem("schedule.warmup", self.schedule.warmup, f"fewer than train.steps ({self.steps})")
        elif self.schedule.kind == "wsd" and self.schedule.warmup + self.schedule.decay * self.steps > self.steps:
            most = (self.steps - self.schedule.warmup) / self.steps
            yield Problem(
                "schedule.decay",
                self.schedule.decay,
                f"at most the part of the steps after the warm-up ({most:.3g} of {self.steps})",
            )
        yield from self._stage_problems()
        if isinstance(self.workers, int):
            yield from batch_problems(self, self.workers)

    def _stage_problems(self) -> Iterator[Problem]:
        """What a ZeRO stage cannot do."""
        if self.zero_stage == 0 and self.offload != "none":
            yield Problem(
                "offload",
                self.offload,
                "none with train.zero_stage=0: DeepSpeed offloads what it partitions",
                "set train.zero_stage=1",
            )
        if self.zero_stage == 3 and self.compile:
            yield Problem(
                "compile",
                self.compile,
                "false with train.zero_stage=3: the compiler sees parameters that are not gathered yet",
                "set train.zero_stage=2",
            )
        if self.zero_stage == 0 and self.precision == "fp16":
            yield Problem(
                "precision",
                "fp16",
                "fp32 or bf16 with train.zero_stage=0: DeepSpeed's fp16 optimiser counts its set-up as a step",
                "set train.zero_stage=1",
            )


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
