"""Learning rate as a function of the step."""

from __future__ import annotations

import math

from icrl.config import TrainConfig


def learning_rate(train: TrainConfig, step: int) -> float:
    """The rate of optimiser step `step` (0-based): linear warm-up, then cosine to `floor` * peak, or constant."""
    schedule, peak = train.schedule, train.optimizer.lr
    if step < schedule.warmup:
        return peak * (step + 1) / schedule.warmup
    if schedule.kind == "constant":
        return peak
    progress = (step - schedule.warmup) / max(1, train.steps - 1 - schedule.warmup)
    return peak * (schedule.floor + (1 - schedule.floor) * 0.5 * (1 + math.cos(math.pi * progress)))
