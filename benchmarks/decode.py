"""Online evaluation of a transformer: KV cache over a batch of environments, against the reference's way.

The reference's way runs the whole history again every round, environment by environment. CPU time of one thread,
medians, both ways in turn, at the paper's size (L=8, M=4, D=32, D'=128, d=5, A=10, T=200, two tokens a round).
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
import torch

from icrl.algorithms import StreamDraws
from icrl.config import LinearBanditConfig, ModelConfig
from icrl.envs import BanditBatch, rewards, sample
from icrl.model import Transformer
from icrl.policy import TransformerPolicy
from icrl.streams import Split

REQUIRED_RATIO = 20.0


def seconds(policy: TransformerPolicy, environments: BanditBatch, config: LinearBanditConfig) -> float:
    """CPU seconds to play a whole horizon in each of the environments, per environment."""
    batch = environments.index.size
    draws = StreamDraws(0, Split.EVAL, environments.index)
    noise = np.random.default_rng(1).standard_normal((config.horizon, batch), dtype=np.float32)
    started = time.process_time()
    policy.reset(environments)
    for t in range(config.horizon):
        draws.round = t
        action = policy.act(draws)
        policy.update(action, rewards(config, environments.means, action, noise[t]))
    return (time.process_time() - started) / batch


def run(quick: bool) -> dict[str, Any]:  # noqa: FBT001
    """Milliseconds of CPU per environment both ways and their ratio, which must be at least `REQUIRED_RATIO`."""
    batch, repeats = (100, 1) if quick else (200, 3)
    config = LinearBanditConfig()
    model = Transformer(ModelConfig(), config)
    many = sample(config, 0, Split.EVAL, np.arange(batch))
    one = sample(config, 0, Split.EVAL, np.arange(1))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        cached = TransformerPolicy(model)
        recomputed = TransformerPolicy(model, cache=False)
        pairs = [(seconds(cached, many, config), seconds(recomputed, one, config)) for _ in range(repeats)]
    finally:
        torch.set_num_threads(threads)
    with_cache, without = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = without / with_cache
    return {
        "name": "decode",
        "batch": batch,
        "repeats": repeats,
        "cached_ms_per_environment": 1e3 * with_cache,
        "reference_ms_per_environment": 1e3 * without,
        "ratio": ratio,
        "required_ratio": REQUIRED_RATIO,
        "passed": ratio >= REQUIRED_RATIO,
    }


def table(result: dict[str, Any]) -> str:
    """The result of `run` for a terminal."""
    return "\n".join(
        [
            f"{'one environment, T = 200':34}{'CPU ms':>10}",
            f"{'KV cache, batch of ' + str(result['batch']):34}{result['cached_ms_per_environment']:10.2f}",
            f"{'prefix run again every round':34}{result['reference_ms_per_environment']:10.2f}",
            f"{'ratio':34}{result['ratio']:9.1f}x (required {result['required_ratio']:.0f}x)",
        ]
    )
