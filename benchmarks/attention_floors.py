"""Floors, targets and the page of the GPU benchmark of attention: arithmetic only, no GPU.

The floor of a pass is the larger of two times: the products of the tiles that touch the diagonal or lie below it over
the matmul rate, and every input read once and every output written once over the copy rate, as measured in the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Pass = Literal["forward", "backward"]


@dataclass(frozen=True)
class Rates:
    """What the device does in the same run: bytes copied (read and written) and bfloat16 matmul FLOP, per second."""

    copy: float
    matmul: float


@dataclass(frozen=True)
class Shape:
    """Causal attention over T tokens, bfloat16."""

    batch: int
    heads: int
    tokens: int
    width: int

    def __str__(self) -> str:
        return f"({self.batch},{self.heads},{self.tokens},{self.width})"

    def flops(self, kind: Pass) -> float:
        """Of the scores below the diagonal, as papers count: 4 B H T^2 D / 2 forward, 2.5 times that backward."""
        forward = 2.0 * self.batch * self.heads * self.tokens**2 * self.width
        return forward if kind == "forward" else 2.5 * forward

    def moved(self, kind: Pass) -> int:
        """Bytes: q, k, v, out; backward q, k, v, dO, dq, dk, dv."""
        return 2 * self.batch * self.heads * self.tokens * self.width * (4 if kind == "forward" else 7)

    def floor_s(self, kind: Pass, rates: Rates) -> float:
        """Seconds below which no kernel gets on this device. Products over the width are 16 deep at least."""
        side = 64 if self.tokens <= 1024 else 128
        blocks = -(-self.tokens // side)
        deep, wide = max(self.width, 16), self.width
        per_score = 2 * (deep + wide) if kind == "forward" else 2 * (2 * deep + 3 * wide)
        products = self.batch * self.heads * blocks * (blocks + 1) // 2 * side**2 * per_score
        return max(products / rates.matmul, self.moved(kind) / rates.copy)


@dataclass(frozen=True)
class Timing:
    """Seconds of one way of computing one pass; None with the reason when it was not measured."""

    shape: Shape
    kind: Pass
    way: str
    seconds: float | None
    reason: str = ""


@dataclass(frozen=True)
class Target:
    """One of the figures that the kernels must reach on an H200."""

    name: str
    measured: float
    limit: float
    met: bool


PAPER = Shape(256, 4, 400, 16)
SHORT = Shape(256, 4, 512, 64)
LONG = Shape(2, 16, 8192, 128)


def targets(timings: Sequence[Timing], rates: Rates) -> list[Target]:
    """The targets, from the timings of our kernels; a shape that was not timed misses its target."""
    taken = {(t.shape, t.kind): t.seconds for t in timings if t.way == "ours" and t.seconds is not None}

    def at_most(name: str, shape: Shape, kind: Pass, limit_ms: float) -> Target:
        measured = 1e3 * taken.get((shape, kind), float("inf"))
        return Target(f"{shape} {kind}, {name}, ms", measured, limit_ms, measured <= limit_ms)

    found = [
        at_most("twice the floor", PAPER, "forward", 2e3 * PAPER.floor_s("forward", rates)),
        at_most("twice the floor", PAPER, "backward", 2e3 * PAPER.floor_s("backward", rates)),
        at_most("HSTU's H100 row by bandwidth", SHORT, "forward", 0.146),
        at_most("HSTU's H100 row by bandwidth", SHORT, "backward", 0.384),
    ]
    rate = LONG.flops("forward") / taken.get((LONG, "forward"), float("inf")) / 1e12
    return [*found, Target(f"{LONG} forward, TFLOP/s", rate, 480.0, rate >= 480.0)]


def timing_rows(timings: Sequence[Timing], rates: Rates) -> list[str]:
    """The timings as a Markdown table."""
    rows = ["| B,H,T,D | pass | way | ms | TFLOP/s | TB/s | over the floor |", "|---|---|---|---|---|---|---|"]
    for t in timings:
        if t.seconds is None:
            rows.append(f"| {t.shape} | {t.kind} | {t.way} | not measured: {t.reason} | | | |")
            continue
        rate, moved = t.shape.flops(t.kind) / t.seconds / 1e12, t.shape.moved(t.kind) / t.seconds / 1e12
        ratio = t.seconds / t.shape.floor_s(t.kind, rates)
        rows.append(
            f"| {t.shape} | {t.kind} | {t.way} | {1e3 * t.seconds:.4f} | {rate:.1f} | {moved:.2f} | {ratio:.2f} |"
        )
    return rows


@dataclass(frozen=True)
class DecodeTiming:
    """Seconds of one step: N environments, H heads of D, t tokens held."""

    environments: int
    heads: int
    width: int
    tokens: int
    way: str
    seconds: float

    def floor_s(self, rates: Rates) -> float:
        """Every key and value of the cache read once."""
        return 4 * self.environments * self.heads * self.tokens * self.width / rates.copy


def decode_rows(timings: Sequence[DecodeTiming], rates: Rates) -> list[str]:
    """The decode timings as a Markdown table."""
    rows = ["| N | H | D | t | way | us | over the floor |", "|---|---|---|---|---|---|---|"]
    for t in timings:
        ratio = t.seconds / t.floor_s(rates)
        rows.append(
            f"| {t.environments} | {t.heads} | {t.width} | {t.tokens} | {t.way} | {1e6 * t.seconds:.1f} | {ratio:.2f} |"
        )
    return rows


def target_rows(found: Sequence[Target]) -> list[str]:
    """The targets as a Markdown table."""
    rows = ["| target | measured | limit | |", "|---|---|---|---|"]
    return rows + [f"| {t.name} | {t.measured:.4g} | {t.limit:.4g} | {'met' if t.met else 'MISSED'} |" for t in found]
