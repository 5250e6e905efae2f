"""Regret in fresh environments: the transformer and every other algorithm meet the same ones, with the same noise.

Shapes: B environments, T rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eval.line_up import Entrant, line_up
from icrl import algorithms
from icrl.algorithms import Algorithm
from icrl.config import Config
from icrl.model import Transformer
from icrl.policy import TransformerPolicy
from icrl.rollout.loop import play
from icrl.streams import Split

MAX_BATCH = 512
"""Most environments played at once."""

_CACHE_BYTES = 2**28
"""Most memory for the keys and values of the environments played at once."""

_SPEAK_EVERY = 30.0
"""Seconds between lines about an algorithm that is still playing."""


@dataclass(frozen=True)
class Outcome:
    """What one algorithm did in all environments."""

    entrant: Entrant
    suboptimality: npt.NDArray[np.float32]
    """float32[B, T]: noise-free <a* - a_t, w*>."""


def batch_size(model: Transformer) -> int:
    """Environments that the transformer plays at once, for a bounded cache."""
    cache = model.new_cache(1)
    return max(1, min(MAX_BATCH, _CACHE_BYTES // cache.nbytes))


def evaluate(
    config: Config, model: Transformer, *, batch: int | None = None, progress: Callable[[str], None] = lambda line: None
) -> tuple[Outcome, ...]:
    """Play `eval.environments` environments of split EVAL with everyone in the line-up, the transformer first.

    A function of (config, weights) alone: `batch`, how many environments are played at once (None: what memory allows),
    changes it by float rounding at most.
    """
    return tuple(_play(config, model, entrant, batch, progress) for entrant in line_up(config))


def _play(
    config: Config, model: Transformer, entrant: Entrant, batch: int | None, progress: Callable[[str], None]
) -> Outcome:
    algorithm: Algorithm
    if entrant.algorithm is None:
        algorithm = TransformerPolicy(model, config.eval.action, name=entrant.name)
        size = batch or batch_size(model)
    else:
        algorithm = algorithms.build(entrant.algorithm, config.environment)
        size = batch or MAX_BATCH
    n = config.eval.environments
    suboptimality = np.empty((n, config.environment.horizon), np.float32)
    began = spoke = time.monotonic()
    for start in range(0, n, size):
        indices = np.arange(start, min(start + size, n), dtype=np.int64)
        played = play(config.environment, algorithm, config.eval.seed, Split.EVAL, indices)
        suboptimality[start : start + len(indices)] = played.suboptimality
        if time.monotonic() - spoke > _SPEAK_EVERY:
            spoke = time.monotonic()
            progress(f"{entrant.name}: {start + len(indices):,} of {n:,} environments")
    progress(f"{entrant.name}: {n:,} environments in {time.monotonic() - began:.1f} s")
    return Outcome(entrant, suboptimality)
