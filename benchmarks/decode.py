"""Online evaluation of a transformer, and the attention of its steps against the memory it has to read.

Rollouts at the paper's size (L=8, M=4, D=32, D'=128, d=5, A=10, T=200, two tokens a round): C++ cache, torch cache,
and the reference's way, which runs the whole history again every round, environment by environment. The C++ cache's
rollout is split into attention, the rest of the model, and the rest. Attention alone, one layer's step on a cache far
beyond L2: its time over that of reading the same bytes, `torch.sum`. CPU time of one thread, contestants in turn.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from benchmarks.clock import in_turn
from icrl.algorithms import StreamDraws
from icrl.attention import KVCache, Slot
from icrl.attention.decode import HeldLayer, Now
from icrl.config import LinearBanditConfig, ModelConfig
from icrl.envs import BanditBatch, rewards, sample
from icrl.model import Transformer
from icrl.policy import TransformerPolicy
from icrl.streams import Split

REQUIRED_RATIO = 20.0
"""Least speed of a cached rollout, as a multiple of the reference's."""
MOST_OVER_FLOOR = 2.5
"""Most time of the attention of a step at the paper's heads, as a multiple of reading the cache."""

SHAPES = {  # environments, heads, width of a head, tokens held, new tokens
    "paper's heads": (1000, 4, 8, 398, 2),
    "paper's heads, 1 token": (1000, 4, 8, 399, 1),
    "heads of full width": (150, 4, 69, 398, 2),
}


@dataclass
class Clocked:
    """A layer of a cache that counts its CPU time."""

    layer: HeldLayer
    seconds: float = 0.0

    @property
    def nbytes(self) -> int:
        return self.layer.nbytes

    def append_and_attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float, now: Now) -> Tensor:
        started = time.process_time()
        out = self.layer.append_and_attend(q, k, v, scale, now)
        self.seconds += time.process_time() - started
        return out


@dataclass
class Split3:
    """CPU seconds of a rollout: attention, the whole model, everything."""

    layers: list[Clocked] = field(default_factory=list)
    model: float = 0.0
    total: float = 0.0

    def shares(self) -> dict[str, float]:
        """Of the total; they add to 1."""
        attention = sum(layer.seconds for layer in self.layers)
        parts = {
            "attention": attention,
            "rest of the model": self.model - attention,
            "sampling, environment": self.total - self.model,
        }
        return {name: seconds / self.total for name, seconds in parts.items()}


class Decoder(Transformer):
    """The model with a cache of one kind, clocked where `split` is given."""

    backend: Literal["native", "plain"] = "native"
    split: Split3 | None = None

    def new_cache(self, batch: int, *, backend: Literal["auto", "native", "device", "plain"] = "auto") -> KVCache:
        cache = super().new_cache(batch, backend=self.backend if backend == "auto" else backend)
        if self.split is not None:
            self.split.layers = [Clocked(layer) for layer in cache.layers]
            cache.layers = list(self.split.layers)
        return cache

    def forward_cached(self, action_set: Tensor, previous: tuple[Tensor, Tensor] | None, cache: KVCache) -> Tensor:
        started = time.process_time()
        logits = super().forward_cached(action_set, previous, cache)
        if self.split is not None:
            self.split.model += time.process_time() - started
        return logits


def play(policy: TransformerPolicy, environments: BanditBatch, config: LinearBanditConfig) -> float:
    """CPU seconds of a whole horizon in all of the environments."""
    batch = environments.index.size
    draws = StreamDraws(0, Split.EVAL, environments.index)
    noise = np.random.default_rng(1).standard_normal((config.horizon, batch), dtype=np.float32)
    started = time.process_time()
    policy.reset(environments)
    for t in range(config.horizon):
        draws.round = t
        action = policy.act(draws)
        policy.update(action, rewards(config, environments.means, action, noise[t]))
    return time.process_time() - started


def rollouts(batch: int, repeats: int) -> dict[str, Any]:
    """Milliseconds of CPU per environment each way, and where those of the C++ cache go."""
    config = LinearBanditConfig()
    many = sample(config, 0, Split.EVAL, np.arange(batch))
    one = sample(config, 0, Split.EVAL, np.arange(1))
    native, plain, recomputed = (Decoder(ModelConfig(), config) for _ in range(3))
    plain.backend = "plain"
    contestants = {
        "C++ cache": (TransformerPolicy(native), many),
        "torch cache": (TransformerPolicy(plain), many),
        "prefix": (TransformerPolicy(recomputed, cache=False), one),
    }
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, (policy, environments) in contestants.items():
            taken[name].append(play(policy, environments, config) / environments.index.size)
    clocked = Decoder(ModelConfig(), config)
    clocked.split = Split3()
    clocked.split.total = play(TransformerPolicy(clocked), many, config)
    return {
        "ms_per_environment": {name: 1e3 * statistics.median(seconds) for name, seconds in taken.items()},
        "shares": clocked.split.shares(),
    }


def attention(shape: tuple[int, int, int, int, int], repeats: int) -> dict[str, Any]:
    """One layer's step at a full cache: milliseconds, bytes, and the milliseconds that `torch.sum` reads them in."""
    batch, heads, width, held, n_new = shape
    generator = torch.Generator().manual_seed(0)
    past = torch.randn(batch, heads, held, width, generator=generator)
    new = torch.randn(batch, n_new, 3, heads, width, generator=generator).permute(2, 0, 3, 1, 4).unbind(0)
    work: dict[str, Any] = {}
    backends: dict[str, Literal["native", "plain"]] = {"C++": "native", "torch": "plain"}
    for name, backend in backends.items():
        cache = KVCache([Slot(heads, width, width)], batch, held + n_new, backend=backend)
        cache.append_and_attend(0, past[:, :, :1].expand_as(past), past, past)
        cache.advance(held)
        # without `advance` every call is the same step
        work[name] = lambda cache=cache: cache.append_and_attend(0, *new)
    n_bytes = batch * heads * (held + n_new) * 2 * width * 4
    memory = torch.ones(n_bytes // 4)
    work["read"] = memory.sum
    for step in work.values():
        step()
    ms = {name: 1e3 * times.cpu_s for name, times in in_turn(work, repeats).items()}
    return {"bytes": n_bytes, "ms": ms, "over_floor": {name: ms[name] / ms["read"] for name in ("C++", "torch")}}


def run(quick: bool) -> dict[str, Any]:  # noqa: FBT001
    """Rollouts each way and steps against the floor; the ratios of `REQUIRED_RATIO` and `MOST_OVER_FLOOR`."""
    batch, repeats = (100, 1) if quick else (200, 3)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            steps = {name: attention(shape, 5 if quick else 15) for name, shape in SHAPES.items()}
        played = rollouts(batch, repeats)
    finally:
        torch.set_num_threads(threads)
    ms = played["ms_per_environment"]
    ratio, over = ms["prefix"] / ms["C++ cache"], steps["paper's heads"]["over_floor"]["C++"]
    return {
        "name": "decode",
        "batch": batch,
        "repeats": repeats,
        **played,
        "steps": steps,
        "ratio": ratio,
        "required_ratio": REQUIRED_RATIO,
        "most_over_floor": MOST_OVER_FLOOR,
        "passed": ratio >= REQUIRED_RATIO and over <= MOST_OVER_FLOOR,
    }


def table(result: dict[str, Any]) -> str:
    """The result of `run` for a terminal."""
    ms = result["ms_per_environment"]
    lines = [f"{'rollout of T = 200, batch of ' + str(result['batch']):34}{'CPU ms':>10}{'rollouts / CPU s':>18}"]
    lines += [f"{name:34}{value:10.2f}{1e3 / value:18.1f}" for name, value in ms.items()]
    lines.append(f"{'prefix / C++ cache':34}{result['ratio']:9.1f}x (required {result['required_ratio']:.0f}x)")
    lines.append("of a rollout: " + ", ".join(f"{name} {share:.0%}" for name, share in result["shares"].items()))
    lines.append(
        f"\n{'one step of one layer':34}{'C++ ms':>10}{'torch ms':>10}{'floor ms':>10}{'MB':>8}{'C++/floor':>11}"
    )
    for name, step in result["steps"].items():
        t = step["ms"]
        lines.append(
            f"{name:34}{t['C++']:10.2f}{t['torch']:10.2f}{t['read']:10.2f}{step['bytes'] / 1e6:8.0f}"
            f"{step['over_floor']['C++']:10.2f}x"
        )
    lines.append(f"(required {result['most_over_floor']}x at the paper's heads)")
    return "\n".join(lines)
