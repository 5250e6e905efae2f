"""Training metrics between two records."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from train.engine import StepResult

_KEPT = ("loss", "grad_norm", "steps", "skipped")
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024


@dataclass
class Window:
    """Sums since the last record. What decides a record's values is part of the checkpoint, times are not."""

    loss: float = 0.0
    grad_norm: float = 0.0
    steps: int = 0
    skipped: int = 0
    """Steps of fp16 whose gradient overflowed."""
    waited: float = 0.0
    """Seconds in which training waited for data."""
    stalled: float = 0.0
    """Seconds that checkpoints held up training."""
    timed: int = 0
    """Steps since the clock began to run."""
    started: float = field(default_factory=time.perf_counter)

    @staticmethod
    def of(state: Mapping[str, float]) -> Window:
        """The window that `state` was taken of, its clock at zero."""
        own = {name: state.get(name, 0) for name in _KEPT}
        return Window(own["loss"], own["grad_norm"], int(own["steps"]), int(own["skipped"]))

    def state(self) -> dict[str, float]:
        """What a checkpoint keeps of it."""
        return {name: getattr(self, name) for name in _KEPT}

    def add(self, result: StepResult, waited: float) -> None:
        self.loss += result.loss
        self.grad_norm += result.grad_norm
        self.steps += 1
        self.timed += 1
        self.skipped += result.skipped
        self.waited += waited

    def tags(self, global_batch: int, tokens: int) -> dict[str, float]:
        """Means over the steps, and rates since the clock began; `tokens` are those of one trajectory."""
        seconds = time.perf_counter() - self.started
        rate = self.timed * global_batch / seconds
        skipped = {"health/skipped_steps": self.skipped / self.steps} if self.skipped else {}
        return {
            "train/loss": self.loss / self.steps,
            "train/grad_norm": self.grad_norm / max(1, self.steps - self.skipped),
            **skipped,
            "perf/trajectories_per_second": rate,
            "perf/tokens_per_second": rate * tokens,
            "perf/loader_stall": self.waited / seconds,
            "perf/checkpoint_stall": self.stalled / seconds,
            "perf/peak_memory_gib": peak_memory() / 2**30,
        }


def peak_memory() -> int:
    """Most bytes that this process has held: of the GPU's memory where there is one, else of the host's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT
