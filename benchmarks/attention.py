"""ReLU attention on a CPU: the C++ kernel against torch's ways, forward and forward and backward, in one thread.

Rivals: `blocked` (ReLU in torch, scores in blocks), `eager` (ReLU in torch, scores T x T), `softmax` (torch's fused
`scaled_dot_product_attention`, another function of the same products). The kernel reads views of one packed
[B,T,3,H,D], as a model has them, its rivals contiguous copies. CPU time, medians, all in turn. Useful operations: half
of the T x T scores, 4 D each forward and 10 D backward; the floor is what `torch.mm` reaches in the same run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.clock import in_turn
from icrl.attention import cpu, relu_attention
from icrl.attention.problem import Seen
from icrl.attention.reference import relu_attention_reference

MM_SIZE = 512
DTYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class Shape:
    """One problem, and the most of softmax's CPU time that the kernel may take in float32; none: not judged."""

    batch: int
    heads: int
    tokens: int
    width: int
    most_of_softmax: float | None = None

    @property
    def label(self) -> str:
        """B,H,T,D."""
        return f"{self.batch},{self.heads},{self.tokens},{self.width}"

    @property
    def forward_flop(self) -> float:
        """Two products of the scores that are seen."""
        return 2.0 * self.batch * self.heads * self.tokens**2 * self.width


SHAPES = (
    Shape(64, 4, 400, 16, most_of_softmax=0.5),
    Shape(64, 4, 200, 8, most_of_softmax=0.5),
    Shape(8, 8, 1024, 64, most_of_softmax=0.6),
    Shape(128, 1, 400, 32),
    Shape(128, 4, 400, 8),
)


def ways(shape: Shape, dtype: torch.dtype) -> dict[str, dict[str, Callable[[], object]]]:
    """What each contestant does forward, and forward and backward."""
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(shape.batch, shape.tokens, 3, shape.heads, shape.width, generator=generator).to(dtype)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    grad = torch.randn(shape.batch, shape.tokens, shape.heads, shape.width, generator=generator).to(dtype)
    grad = grad.transpose(1, 2)
    incoming = grad.contiguous()
    factor = 1 / torch.arange(1, shape.tokens + 1, dtype=torch.float32)
    separate = [x.contiguous() for x in (q, k, v)]
    inputs = [x.clone().requires_grad_() for x in separate]

    def ours() -> None:
        cpu.forward(q, k, v, factor, Seen())
        cpu.backward(grad, q, k, v, factor, Seen())

    def differentiated(work: Callable[..., Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(work(*inputs), inputs, incoming)

    def softmax(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return scaled_dot_product_attention(q, k, v, is_causal=True)

    rivals: dict[str, Callable[..., Tensor]] = {
        "blocked": partial(relu_attention, backend="blocked"),
        "eager": relu_attention_reference,
        "softmax": softmax,
    }
    forward: dict[str, Callable[[], object]] = {"ours": lambda: cpu.forward(q, k, v, factor, Seen())}
    both: dict[str, Callable[[], object]] = {"ours": ours}
    for name, work in rivals.items():
        forward[name] = partial(work, *separate)
        both[name] = differentiated(work)
    return {"forward": forward, "forward and backward": both}


def judged(shape: Shape, dtype: torch.dtype, seconds: dict[str, float]) -> tuple[str, bool]:
    """What is required of a row, in words, and whether it holds."""
    if dtype == torch.bfloat16:
        return "no slower than the best rival", seconds["ours"] <= min(seconds.values())
    if shape.most_of_softmax is None:
        return "", True
    return f"at most {shape.most_of_softmax} of softmax", seconds["ours"] <= shape.most_of_softmax * seconds["softmax"]


def measured(shape: Shape, dtype: torch.dtype, repeats: int) -> list[dict[str, Any]]:
    """The rows of one shape and type, and the rate of `torch.mm` taken in turn with them."""
    square = torch.randn(MM_SIZE, MM_SIZE).to(dtype)
    rows = []
    for direction, contestants in ways(shape, dtype).items():
        for work in contestants.values():
            work()
        times = in_turn(contestants | {"mm": lambda: [square @ square for _ in range(8)]}, repeats)
        seconds = {name: times[name].cpu_s for name in contestants}
        required, passed = judged(shape, dtype, seconds)
        flop = shape.forward_flop * (1.0 if direction == "forward" else 3.5)
        rows.append(
            {
                "shape": shape.label,
                "dtype": str(dtype).removeprefix("torch."),
                "direction": direction,
                "cpu_ms": {name: 1e3 * time for name, time in seconds.items()},
                "of_softmax": seconds["ours"] / seconds["softmax"],
                "of_best_rival": seconds["ours"] / min(time for name, time in seconds.items() if name != "ours"),
                "gflops": flop / seconds["ours"] / 1e9,
                "mm_gflops": 8 * 2 * MM_SIZE**3 / times["mm"].cpu_s / 1e9,
                "required": required,
                "passed": passed,
            }
        )
    return rows


def run(quick: bool) -> dict[str, Any]:  # noqa: FBT001
    """CPU milliseconds, ratios and rates of every shape, type and direction; which targets hold."""
    repeats = 3 if quick else 7
    one = torch.zeros(1, 1, 1, 1)
    if (reason := cpu.refusal(one, one, one, Seen())) is not None:
        return {"name": "attention", "reason": reason, "rows": [], "passed": False}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = [row for dtype in DTYPES for shape in SHAPES for row in measured(shape, dtype, repeats)]
    finally:
        torch.set_num_threads(threads)
    return {
        "name": "attention",
        "repeats": repeats,
        "torch": torch.__version__,
        "rows": rows,
        "passed": all(row["passed"] for row in rows),
    }


def table(result: dict[str, Any]) -> str:
    """The result of `run` for a terminal."""
    if "reason" in result:
        return f"the kernel cannot run here: {result['reason']}"
    names = ("ours", "blocked", "eager", "softmax")
    head = f"{'CPU ms, one thread':40}{''.join(f'{name:>9}' for name in names)}{'/softmax':>10}{'/best':>7}"
    lines = [f"{head}{'GFLOP/s':>9}{'mm':>6}"]
    for row in result["rows"]:
        label = f"{row['shape']:13}{row['dtype']:10}{row['direction'].replace('forward and backward', 'and backward')}"
        times = "".join(f"{row['cpu_ms'][name]:9.1f}" for name in names)
        rates = f"{row['of_softmax']:10.2f}{row['of_best_rival']:7.2f}{row['gflops']:9.0f}{row['mm_gflops']:6.0f}"
        verdict = f"  {'holds' if row['passed'] else 'MISSED'}: {row['required']}" if row["required"] else ""
        lines.append(f"{label:40}{times}{rates}{verdict}")
    return "\n".join(lines)
