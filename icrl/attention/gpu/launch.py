"""From tensors to a kernel's launch: strides, tile, grid. What runs on a device and what is compiled ahead of time
without one are the same `Launch`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from icrl.attention.gpu.tables import JOINT_TOKENS, Pass, Tile, joint_width, padded, tile
from icrl.attention.problem import Seen

_target: ContextVar[int] = ContextVar("target", default=9)


@dataclass(frozen=True)
class Launch:
    """One kernel with everything it is called with."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    tile: Tile

    def run(self) -> None:
        """Launches the kernel on the current stream of the tensors' device."""
        if self.grid[0] == 0:
            return
        self.kernel[self.grid](**self.arguments, **self.options)

    @property
    def options(self) -> dict[str, int]:
        """What the compiler is told besides the arguments."""
        limit = {} if self.tile.registers is None or torch.version.hip is not None else {"maxnreg": self.tile.registers}
        return {"num_warps": self.tile.warps, "num_stages": self.tile.stages} | limit


@contextmanager
def target(capability: int) -> Iterator[None]:
    """Launches made here from tensors on no GPU are for this compute capability: 80, 90 and so on."""
    before = _target.set(capability // 10)
    try:
        yield
    finally:
        _target.reset(before)


def generation(device: torch.device) -> int:
    """The major compute capability that a launch is for."""
    if device.type == "cuda" and torch.version.hip is None:
        return torch.cuda.get_device_capability(device)[0]
    return _target.get()


def rounded(count: int, unit: int) -> int:
    """count / unit, rounded up."""
    return -(-count // unit)


def _strides(x: Tensor) -> tuple[int, ...]:
    return tuple(0 if size == 1 else stride for size, stride in zip(x.shape, x.stride(), strict=True))


def alignment(*tensors: Tensor) -> int:
    """The largest power of two, at most 16, that divides every stride but the last of every tensor."""
    return math.gcd(16, *(stride for x in tensors for stride in _strides(x)[:-1]))


def strides(align: int, **tensors: Tensor) -> dict[str, Any]:
    """The arguments `name`_batch, _head and _row in units of `align`, and _column."""
    found: dict[str, Any] = {}
    for name, x in tensors.items():
        batch, head, row, _ = _strides(x)
        found |= {f"{name}_batch": batch // align, f"{name}_head": head // align, f"{name}_row": row // align}
        found[f"{name}_column"] = x.stride(3)
    return found


def shrink(q: Tensor) -> float:
    """A power of two, near 1/sqrt(D), that keeps the scores of float16 heads in range; exact, undone in float32."""
    return 2.0 ** -math.ceil(math.log2(q.shape[3]) / 2) if q.dtype == torch.float16 else 1.0


def longest(q: Tensor, k: Tensor, seen: Seen) -> int:
    """Tokens of the longest sequence."""
    if seen.documents is None:
        return max(q.shape[2], k.shape[2])
    assert seen.longest is not None
    return seen.longest


def common(name: Pass, q: Tensor, k: Tensor, v: Tensor, seen: Seen) -> tuple[Tile, dict[str, Any]]:
    """The tile of a pass and the arguments that every pass takes."""
    tokens = longest(q, k, seen)
    chosen = tile(name, max(q.shape[3], v.shape[3]), tokens, q.dtype, generation(q.device))
    return chosen, {
        "n_queries": q.shape[2],
        "n_keys": k.shape[2],
        "offset": seen.offset,
        "window": seen.window or 0,
        "D": q.shape[3],
        "E": v.shape[3],
        "D_TILE": padded(q.shape[3]),
        "E_TILE": padded(v.shape[3]),
        "ROWS": chosen.rows,
        "KEYS": chosen.keys,
        "SHRINK": shrink(q),
        "CAUSAL": seen.causal,
        "WINDOWED": seen.window is not None,
        "PACKED": seen.documents is not None,
        "FUSED": q.device.type != "cpu" and torch.version.hip is None,
    }


def sequences(q: Tensor, seen: Seen) -> int:
    """Batch entries, or documents."""
    return q.shape[0] if seen.documents is None else seen.documents.shape[0] - 1


def forward_launch(out: Tensor, q: Tensor, k: Tensor, v: Tensor, factor: Tensor, seen: Seen) -> Launch:
    """The forward pass into `out` [B,H,N,E]."""
    from icrl.attention.gpu.forward_kernel import forward_kernel

    chosen, arguments = common("forward", q, k, v, seen)
    align = alignment(q, k, v, out)
    tokens = q.shape[2] if seen.documents is None else longest(q, k, seen)
    tiles, heads = rounded(tokens, chosen.rows), q.shape[1]
    arguments |= strides(align, q=q, k=k, v=v, out=out)
    del arguments["out_column"]
    arguments |= {
        "Q": q, "K": k, "V": v, "Factor": factor, "Out": out,
        "Documents": factor if seen.documents is None else seen.documents,
        "tiles": tiles, "heads": heads, "group": heads // k.shape[1], "ALIGN": align,
    }  # fmt: skip
    return Launch(forward_kernel, (sequences(q, seen) * heads * tiles,), arguments, chosen)


def backward_launches(
    dq: Tensor, dk: Tensor, dv: Tensor, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, factor: Tensor, seen: Seen
) -> list[Launch]:
    """The backward pass into dq, dk, dv, in order: one kernel up to JOINT_TOKENS, else dQ and then dK with dV."""
    batch, heads, rows, width = v.shape[0], *q.shape[1:3], v.shape[3]
    if rows == 0 or k.shape[2] == 0:
        for x in (dq, dk, dv):
            x.zero_()
        return []
    if seen.window is not None and rows + seen.offset > k.shape[2]:
        dq.zero_()  # rows whose window lies past the last key are visited by no block of keys
    # f dO; rows of whole 16 bytes
    scaled = q.new_empty((batch, heads, rows, rounded(width, 8) * 8))[..., :width]
    align = alignment(q, k, v, grad, dq, dk, dv, scaled)
    arguments = {
        "Q": q, "K": k, "V": v, "Scaled": scaled, "ALIGN": align,
        "Documents": factor if seen.documents is None else seen.documents, "group": heads // k.shape[1],
    }  # fmt: skip
    if longest(q, k, seen) <= JOINT_TOKENS and max(q.shape[3], width) <= joint_width(generation(q.device)):
        return [_joint(dq, dk, dv, grad, q, k, v, factor, seen, scaled, arguments)]
    return [
        _dq(dq, grad, q, k, v, factor, seen, scaled, arguments),
        _dkdv(dk, dv, q, k, v, seen, scaled, arguments),
    ]


def _joint(
    dq: Tensor, dk: Tensor, dv: Tensor, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, factor: Tensor, seen: Seen,
    scaled: Tensor, arguments: dict[str, Any],
) -> Launch:  # fmt: skip
    from icrl.attention.gpu.joint_kernel import joint_kernel

    chosen, shared = common("joint", q, k, v, seen)
    partial = torch.empty((*q.shape[:3], padded(q.shape[3])), dtype=torch.float32, device=q.device)
    heads = k.shape[1]
    given = strides(arguments["ALIGN"], q=q, k=k, v=v, grad=grad, dq=dq, dk=dk, dv=dv, scaled=scaled, partial=partial)
    for name in ("dq", "dk", "dv", "scaled", "partial"):
        del given[f"{name}_column"]
    given |= shared | arguments
    given |= {"Grad": grad, "Factor": factor, "DQ": dq, "DK": dk, "DV": dv, "Partial": partial, "heads": heads}
    given["ON_DIAGONAL"] = seen.causal and seen.offset == 0 and q.shape[2] <= k.shape[2]
    return Launch(joint_kernel, (sequences(q, seen) * heads,), given, chosen)


def _dq(
    dq: Tensor, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, factor: Tensor, seen: Seen,
    scaled: Tensor, arguments: dict[str, Any],
) -> Launch:  # fmt: skip
    from icrl.attention.gpu.split_kernels import dq_kernel

    chosen, shared = common("dq", q, k, v, seen)
    tokens = q.shape[2] if seen.documents is None else longest(q, k, seen)
    tiles, heads = rounded(tokens, chosen.rows), q.shape[1]
    given = strides(arguments["ALIGN"], q=q, k=k, v=v, grad=grad, dq=dq, scaled=scaled)
    for name in ("dq", "scaled"):
        del given[f"{name}_column"]
    given |= shared | arguments
    given |= {"Grad": grad, "Factor": factor, "DQ": dq, "tiles": tiles, "heads": heads}
    return Launch(dq_kernel, (sequences(q, seen) * heads * tiles,), given, chosen)


def _dkdv(
    dk: Tensor, dv: Tensor, q: Tensor, k: Tensor, v: Tensor, seen: Seen, scaled: Tensor, arguments: dict[str, Any]
) -> Launch:
    from icrl.attention.gpu.split_kernels import dkdv_kernel

    chosen, shared = common("dkdv", q, k, v, seen)
    tokens = k.shape[2] if seen.documents is None else longest(q, k, seen)
    tiles, heads = rounded(tokens, chosen.keys), k.shape[1]
    given = strides(arguments["ALIGN"], q=q, k=k, v=v, dk=dk, dv=dv, scaled=scaled)
    for name in ("dk", "dv", "scaled"):
        del given[f"{name}_column"]
    given |= shared | arguments
    given |= {"DK": dk, "DV": dv, "tiles": tiles, "heads": heads}
    return Launch(dkdv_kernel, (sequences(q, seen) * heads * tiles,), given, chosen)
