"""Statistics of regret: pure functions of arrays.

Shapes: B environments, T rounds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
Samples = npt.NDArray[Any]

Z_95 = 1.959963984540054
"""The 97.5 % quantile of the standard normal: half a two-sided 95 % interval, in standard errors."""


@dataclass(frozen=True)
class Estimate:
    """Mean over the first axis and its standard error, in the shape of the other axes."""

    mean: FloatArray
    standard_error: FloatArray


@dataclass(frozen=True)
class Ratio:
    """A ratio of two means with its 95 % interval."""

    value: float
    low: float
    high: float


def cumulative(suboptimality: Samples) -> FloatArray:
    """float64[B, T]: regret up to and including each round, sum_{s <= t} <a* - a_s, w*>."""
    return np.cumsum(suboptimality, axis=1, dtype=np.float64)


def estimate(samples: Samples) -> Estimate:
    """Mean and standard error s / sqrt(B) over the first axis of [B, ...], s with B - 1 degrees of freedom; B >= 2."""
    values = np.asarray(samples, np.float64)
    return Estimate(values.mean(axis=0), values.std(axis=0, ddof=1) / math.sqrt(len(values)))


def paired_difference(first: Samples, second: Samples) -> Estimate:
    """Mean of `first - second` and its standard error, environment by environment: what they share cancels."""
    return estimate(np.asarray(first, np.float64) - np.asarray(second, np.float64))


def ratio_of_means(numerator: Samples, denominator: Samples) -> Ratio | None:
    """mean(x) / mean(y) of paired samples [B] with its interval by the delta method; None where mean(y) is 0.

    With r = mean(x) / mean(y), the variance of r is var(x - r y) / (B mean(y)^2) to first order.
    """
    x, y = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    base = float(y.mean())
    if base == 0:
        return None
    value = float(x.mean()) / base
    half = Z_95 * float(estimate(x - value * y).standard_error) / abs(base)
    return Ratio(value, value - half, value + half)
