"""Block sizes of the kernels by width of the heads, length and type. Nothing here knows Triton.

Chosen by what the compiler makes of them (spills, matrix instructions, instructions per score; see docs/gpu.md), not
yet by measurement on a device: `python -m benchmarks attention --gpu` measures them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

Pass = Literal["forward", "joint", "dq", "dkdv"]

WIDTHS = (16, 32, 64, 128, 256)
"""Widths that tiles are padded to: matrix instructions need 16."""
JOINT_TOKENS = 512
"""Up to this length one program per (batch, key head) does the whole backward pass in one launch."""
JOINT_WIDTH = 32
"""The widest head for that. Beyond, dQ in float32 takes more registers and traffic than the two products it saves."""


@dataclass(frozen=True)
class Tile:
    """Query rows and keys of a tile of scores, and the warps and pipeline stages of its program."""

    rows: int
    keys: int
    warps: int
    stages: int
    registers: int | None = None
    """Most registers of a thread, where the compiler would take so many that too few programs fit; NVIDIA only."""


HALF: dict[tuple[Pass, int], tuple[Tile, Tile]] = {
    # (pass, width): up to JOINT_TOKENS tokens, beyond
    ("forward", 16): (Tile(64, 64, 2, 2), Tile(128, 128, 4, 2)),
    ("forward", 32): (Tile(64, 64, 4, 2), Tile(128, 64, 4, 2)),
    ("forward", 64): (Tile(128, 64, 4, 2), Tile(128, 128, 8, 2)),
    ("forward", 128): (Tile(64, 64, 4, 2), Tile(128, 128, 8, 2)),
    ("forward", 256): (Tile(128, 64, 8, 1),) * 2,
    ("joint", 16): (Tile(64, 64, 4, 1, 168),) * 2,
    ("joint", 32): (Tile(64, 64, 4, 1),) * 2,
    ("dq", 16): (Tile(64, 64, 4, 2),) * 2,
    ("dq", 32): (Tile(64, 64, 4, 2),) * 2,
    ("dq", 64): (Tile(128, 64, 8, 2),) * 2,
    ("dq", 128): (Tile(128, 64, 8, 2),) * 2,
    ("dq", 256): (Tile(128, 32, 8, 1),) * 2,
    ("dkdv", 16): (Tile(64, 128, 4, 2),) * 2,
    ("dkdv", 32): (Tile(64, 64, 4, 2),) * 2,
    ("dkdv", 64): (Tile(64, 128, 8, 2),) * 2,
    ("dkdv", 128): (Tile(32, 128, 8, 2),) * 2,
    ("dkdv", 256): (Tile(64, 64, 8, 1),) * 2,
}
"""bfloat16 and float16, for compute capability 9. Width 256 works but spills in the backward pass."""

ELSEWHERE: dict[tuple[int, Pass, int], tuple[Tile, Tile]] = {
    (8, "forward", 128): (Tile(64, 64, 4, 2), Tile(128, 64, 8, 2)),
    (8, "joint", 16): (Tile(64, 64, 4, 1),) * 2,
    (8, "dq", 128): (Tile(128, 32, 8, 2),) * 2,
    (8, "dkdv", 64): (Tile(32, 128, 8, 2),) * 2,
    (8, "dkdv", 128): (Tile(32, 64, 4, 2),) * 2,
    (10, "dkdv", 16): (Tile(64, 128, 4, 1),) * 2,
    (10, "dkdv", 128): (Tile(64, 128, 8, 1),) * 2,
}
"""(major compute capability, pass, width): where those of HALF spill."""

SINGLE: dict[tuple[Pass, int], Tile] = {
    ("forward", 16): Tile(64, 64, 4, 1),
    ("forward", 32): Tile(64, 32, 4, 1),
    ("forward", 64): Tile(32, 32, 4, 1),
    ("forward", 128): Tile(32, 32, 4, 1),
    ("forward", 256): Tile(16, 16, 4, 1),
    ("joint", 16): Tile(32, 32, 4, 1),
    ("joint", 32): Tile(32, 32, 4, 1),
    ("dq", 16): Tile(32, 32, 4, 1),
    ("dq", 32): Tile(32, 32, 4, 1),
    ("dq", 64): Tile(32, 32, 4, 1),
    ("dq", 128): Tile(16, 16, 4, 1),
    ("dq", 256): Tile(16, 16, 4, 1),
    ("dkdv", 16): Tile(32, 32, 4, 1),
    ("dkdv", 32): Tile(32, 32, 4, 1),
    ("dkdv", 64): Tile(32, 32, 4, 1),
    ("dkdv", 128): Tile(16, 16, 4, 1),
    ("dkdv", 256): Tile(16, 16, 4, 1),
}
"""float32, whose products run outside the matrix units (IEEE arithmetic)."""


def padded(width: int) -> int:
    """The tile width that holds a head of this width."""
    return next(size for size in WIDTHS if size >= width)


def tile(kernel: Pass, width: int, tokens: int, dtype: torch.dtype, generation: int = 9) -> Tile:
    """The tile of a pass for heads of at most `width`, sequences of at most `tokens`, a major compute capability."""
    if dtype == torch.float32:
        return SINGLE[kernel, padded(width)]
    chosen = ELSEWHERE.get((generation, kernel, padded(width))) or HALF[kernel, padded(width)]
    return chosen[tokens > JOINT_TOKENS]


def joint_width(generation: int) -> int:
    """The widest head whose backward pass is one launch: on compute capability 8 wider ones spill."""
    return min(JOINT_WIDTH, 16) if generation == 8 else JOINT_WIDTH
