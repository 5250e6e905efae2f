"""How a global batch is divided over workers and micro-batches."""

from __future__ import annotations

from dataclasses import dataclass

from icrl.config import TrainConfig


@dataclass(frozen=True)
class BatchPlan:
    """How a global batch is divided: global_batch = workers * accumulation * micro_batch."""

    global_batch: int
    workers: int
    micro_batch: int
    accumulation: int

    @staticmethod
    def of(train: TrainConfig, workers: int) -> BatchPlan:
        share = train.global_batch // workers
        micro = share if train.micro_batch == "auto" else train.micro_batch
        return BatchPlan(train.global_batch, workers, micro, share // micro)
