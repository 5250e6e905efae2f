"""A training step on one core at the reference's shape: the fused block against the reference's way, in the same run.

128 trajectories of 200 rounds (400 tokens; 200 with merged tokens), 8 layers, width 32, mlp_dim 32; forward, backward,
clip and AdamW in float32. The reference's way is the same pre-LN block with T x T scores by einsum and torch's
autograd, from the same weights; it takes its batch in parts, for memory, which makes it faster. CPU time, medians, in
turn.

The share of attention and matmuls is what the same calls take alone (`step_parts.cpp`). The floor is the step's
attention alone and its 15 GFLOP of products, none of them made twice, at the rate of `torch.mm`.

Shapes: B trajectories, N tokens, D embed_dim, M heads, Dh width of a head.
"""

from __future__ import annotations

import ctypes
import multiprocessing
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from torch import Tensor, nn

from benchmarks.clock import in_turn
from icrl import native
from icrl.attention import KVCache
from icrl.config import LinearBanditConfig, ModelConfig
from icrl.loss import log_loss
from icrl.model import PracticalBlock, Transformer
from icrl.model.fused import block as fused

BATCH, ENVIRONMENT = 128, LinearBanditConfig()
REQUIRED = {"one head": 3.0, "four heads": 2.0, "one head, merged tokens": 5.0}
"""Least ratio of the reference's CPU time (400 tokens) to ours."""
REQUIRED_SHARE = 0.7
LOSS_TOLERANCE = 1e-5
PARTS = Path(__file__).with_name("step_parts.cpp")


class ReferenceBlock(PracticalBlock):
    """The same layer with every score in memory."""

    def forward(self, h_BND: Tensor, cache: KVCache | None) -> Tensor:
        assert cache is None
        batch, n_tokens, width = h_BND.shape
        qkv = self.qkv(self.attention_norm(h_BND)).view(batch, n_tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        rows = torch.arange(1, n_tokens + 1)
        visible = torch.ones(n_tokens, n_tokens).tril() / rows[:, None]
        scores = torch.einsum("bhid,bhjd->bhij", q, k) * (width // self.heads) ** -0.5
        mixed = torch.einsum("bhij,bhjd->bhid", torch.relu(scores) * visible, v)
        h_BND = h_BND + self.output(mixed.transpose(1, 2).reshape(batch, n_tokens, width))
        out: Tensor = h_BND + self.mlp_out(torch.relu(self.mlp_in(self.mlp_norm(h_BND))))
        return out


@dataclass(frozen=True)
class Way:
    """One way of taking the step."""

    heads: int
    tokens: Literal["onehot", "merged"] = "onehot"
    reference: bool = False
    part: int = BATCH
    """Trajectories of a forward pass; gradients add up over the parts of a batch."""

    def config(self) -> ModelConfig:
        return ModelConfig(heads=self.heads, mlp_dim=32, tokens=self.tokens)

    @property
    def n_tokens(self) -> int:
        """N."""
        return ENVIRONMENT.horizon * (1 if self.tokens == "merged" else 2)


WAYS = {
    "one head": Way(1),
    "one head, reference": Way(1, reference=True, part=32),
    "one head, merged tokens": Way(1, "merged"),
    "four heads": Way(4),
    "four heads, reference": Way(4, reference=True, part=8),
}


class Training:
    """Steps from the same weights on the same batch."""

    def __init__(self, way: Way) -> None:
        config = way.config()
        self.way, self.model = way, Transformer(config, ENVIRONMENT, seed=0)
        if way.reference:
            blocks = nn.ModuleList(ReferenceBlock(config, layer) for layer in range(config.layers))
            blocks.load_state_dict(self.model.blocks.state_dict())
            self.model.blocks = blocks
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.losses: list[float] = []
        self.batch = _batch()

    def step(self) -> None:
        self.optimizer.zero_grad()
        total = 0.0
        for part in zip(*(torch.split(values, self.way.part) for values in self.batch), strict=True):
            action_set, action, reward, label = part
            loss = log_loss(self.model(action_set, action, reward), label).mean() * (len(label) / BATCH)
            torch.autograd.backward(loss)
            total += float(loss.detach())
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.losses.append(total)


def run(quick: bool) -> dict[str, Any]:  # noqa: FBT001 - the signature of every benchmark
    """CPU seconds of a step each way, ratios, losses, floors and peak memory; whether all that is required holds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        trainings = {name: Training(way) for name, way in WAYS.items()}
        taken = in_turn({name: training.step for name, training in trainings.items()}, 2 if quick else 5)
        seconds = {name: times.cpu_s for name, times in taken.items()}
        mm_rate = _mm_rate()
        parts = {name: _parts(WAYS[name]) for name in REQUIRED}
        peaks = {name: _peak_megabytes(WAYS[name]) for name in ("one head", "one head, reference")}
    finally:
        torch.set_num_threads(threads)
    rows = {}
    for name, required in REQUIRED.items():
        rival = "four heads, reference" if name == "four heads" else "one head, reference"
        same = WAYS[rival].tokens == WAYS[name].tokens
        pairs = zip(trainings[name].losses, trainings[rival].losses, strict=True)
        rows[name] = {
            "step_s": seconds[name],
            "reference_s": seconds[rival],
            "ratio": seconds[rival] / seconds[name],
            "required_ratio": required,
            "attention_s": parts[name][0],
            "products_s": parts[name][1],
            "share": sum(parts[name]) / seconds[name],
            "floor_s": parts[name][0] + _products_floor(WAYS[name], mm_rate),
            "loss_difference": max(abs(a - b) for a, b in pairs) if same else None,
        }
    return {
        "ways": rows,
        "mm_gflop_per_s": mm_rate / 1e9,
        "peak_megabytes": peaks,
        "reference_part": WAYS["one head, reference"].part,
        "required_share": REQUIRED_SHARE,
        "loss_tolerance": LOSS_TOLERANCE,
        "passed": all(_passed(row) for row in rows.values()),
    }


def against(name: str, rival: str, repeats: int) -> tuple[float, float]:
    """CPU seconds of a step of two of `WAYS` on one thread, medians, in turn."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        trainings = {way: Training(WAYS[way]) for way in (name, rival)}
        trainings[name].step()  # its kernels are compiled by then
        taken = in_turn({way: training.step for way, training in trainings.items()}, repeats)
    finally:
        torch.set_num_threads(threads)
    return taken[name].cpu_s, taken[rival].cpu_s


def _passed(row: dict[str, Any]) -> bool:
    return bool(
        row["ratio"] >= row["required_ratio"]
        and row["share"] >= REQUIRED_SHARE
        and (row["loss_difference"] or 0.0) <= LOSS_TOLERANCE
    )


def _batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """action_set [B,A,d], action, reward and label [B,T]."""
    generator = torch.Generator().manual_seed(0)
    rounds = (BATCH, ENVIRONMENT.horizon)
    action_set = 2 * torch.rand(BATCH, ENVIRONMENT.n_actions, ENVIRONMENT.dim, generator=generator) - 1
    action, label = (torch.randint(0, ENVIRONMENT.n_actions, rounds, generator=generator) for _ in range(2))
    return action_set, action, torch.randn(rounds, generator=generator), label


def _mm_rate() -> float:
    """FLOP a CPU second of `torch.mm` on 1024 x 1024, the best of some runs."""
    a = torch.randn(1024, 1024)
    runs = [in_turn({"mm": lambda: torch.mm(a, a)}, 3)["mm"].cpu_s for _ in range(5)]
    return 2 * 1024**3 / min(runs)


def _parts(way: Way) -> tuple[float, float]:
    """CPU seconds of a step's attention and of its products, alone."""
    config = way.config()
    block = PracticalBlock(config, 0)
    block.reset(torch.Generator().manual_seed(0))
    sizes = fused.Sizes(BATCH, way.n_tokens, config.embed_dim, config.heads, config.mlp_dim)
    pointers = fused.pointers(list(block.parameters()))
    library = native.library(PARTS, fused.SOURCE.parent, fused.INCLUDE)
    runs: list[list[float]] = []
    for _ in range(5):
        seconds = (ctypes.c_double * 2)()
        if not library.step_parts(ctypes.byref(sizes), pointers, seconds):
            raise MemoryError("no memory for the parts of a step")
        runs.append([config.layers * value for value in seconds])
    attention, products = (median(column) for column in zip(*runs, strict=True))
    return attention, products


def _products_floor(way: Way, mm_rate: float) -> float:
    """Seconds of the products of all layers, forward and backward, at this rate."""
    config = way.config()
    width, inner = config.embed_dim, config.mlp_dim
    return config.layers * 3 * 2 * BATCH * way.n_tokens * width * (4 * width + 2 * inner) / mm_rate


def _peak_megabytes(way: Way) -> float:
    """What a step adds to the memory of a fresh process at its peak."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_peak_of_a_step, (way,))


def _peak_of_a_step(way: Way) -> float:
    torch.set_num_threads(1)
    training = Training(way)
    before = _high_water_megabytes()
    training.step()
    return _high_water_megabytes() - before


def _high_water_megabytes() -> float:
    """Of this process alone; getrusage would tell its parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def table(result: dict[str, Any]) -> str:
    """The result of `run` for a terminal."""
    heads = ("ours", "reference", "ratio", "attention", "matmuls", "share", "floor", "losses")
    lines = [f"{'CPU s of a step':26}" + "".join(f"{head:>10}" for head in heads)]
    for name, row in result["ways"].items():
        difference = row["loss_difference"]
        lines.append(
            f"{name:26}{row['step_s']:10.3f}{row['reference_s']:10.2f}{row['ratio']:9.1f}x{row['attention_s']:10.3f}"
            f"{row['products_s']:10.3f}{row['share']:10.0%}{row['floor_s']:10.3f}"
            + ("         -" if difference is None else f"{difference:10.0e}")
        )
    ours, reference = result["peak_megabytes"].values()
    required = ", ".join(f"{name} {ratio:.0f}x" for name, ratio in REQUIRED.items())
    return "\n".join(
        [
            *lines,
            f"required: {required}; share {result['required_share']:.0%}; losses within {result['loss_tolerance']:.0e}",
            f"torch.mm {result['mm_gflop_per_s']:.0f} GFLOP/s; peak memory of a step with one head {ours:.0f} MB, the "
            f"reference's {reference:.0f} MB with {result['reference_part']} of the {BATCH} trajectories at a time",
        ]
    )
