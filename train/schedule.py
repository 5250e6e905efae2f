"""Learning rate as a function of the step."""

from __future__ import annotations

import math

from icrl.config import TrainConfig


def learning_rate(train: TrainConfig, step: int) -> float:
    """The rate of optimiser step `step` (0-based): linear warm-up, then the schedule's kind; floors are times the peak.

    cosine: half a cosine from the peak to the floor at the last step; wsd: the peak, then linearly to the floor at the
    last step; constant: the peak.
    """
    schedule, peak = train.schedule, train.optimizer.lr
    if step < schedule.warmup:
        return peak * (step + 1) / schedule.warmup
    match schedule.kind:
        case "constant":
            return peak
        case "wsd":
            decaying = round(schedule.decay * train.steps)
            left = (train.steps - 1 - step) / max(1, decaying)
            return peak * (schedule.floor + (1 - schedule.floor) * min(1.0, left))
        case "cosine":
            progress = (step - schedule.warmup) / max(1, train.steps - 1 - schedule.warmup)
            return peak * (schedule.floor + (1 - schedule.floor) * 0.5 * (1 + math.cos(math.pi * progress)))
