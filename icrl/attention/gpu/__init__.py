"""ReLU attention on GPUs in Triton: a backend as `icrl.attention.problem` describes it.

Compiled and checked for NVIDIA GPUs of compute capability 8.0 and later; AMD GPUs take the plain forms of the PTX
instructions and are untested. Imports Triton when first used, so that importing this package never fails.
"""

from __future__ import annotations

import functools
import importlib.util
import os

import torch
from torch import Tensor

from icrl.attention.problem import Seen

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MAX_WIDTH = 256
FAR = 2**22
"""Elements between rows, or columns, from which an offset within a tile of up to 256 of each may leave 32 bits."""
OLDEST = (8, 0)
"""Compute capability from which `cvt.rn.relu` exists."""
SMALL_MEMORY = ((8, 6), (8, 9), (12, 0))
"""Compute capabilities with 99 KB of shared memory a program."""
WIDEST_THERE = 64


@functools.cache
def _why_no_triton() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    return None


def interpreted() -> bool:
    """Do the kernels run in Triton's interpreter, on CPU tensors?"""
    return os.environ.get("TRITON_INTERPRET") == "1"


def refusal(q: Tensor, k: Tensor, v: Tensor, seen: Seen) -> str | None:
    """Why these kernels cannot compute this; None when they can."""
    if (reason := _why_no_triton()) is not None:
        return reason
    if q.device.type != "cuda" and not interpreted():
        return f"the tensors are on {q.device}, expected a CUDA device"
    if q.dtype not in DTYPES or not (q.dtype == k.dtype == v.dtype):
        return f"q, k, v are {q.dtype}, {k.dtype}, {v.dtype}, expected one of float32, float16, bfloat16 for all"
    if not (1 <= q.shape[3] <= MAX_WIDTH and 1 <= v.shape[3] <= MAX_WIDTH):
        return f"heads are {q.shape[3]} wide with values of {v.shape[3]}, expected 1 to {MAX_WIDTH}"
    if any(map(_far, (q, k, v))) or max(q.shape[1], k.shape[1]) * max(q.shape[3], v.shape[3]) >= FAR:
        return f"rows lie {q.stride(2)}, {k.stride(2)}, {v.stride(2)} elements apart, expected less than {FAR}"
    if seen.offset < 0:
        return f"the first query is at position {seen.offset}, expected at least 0"
    if q.device.type == "cuda" and torch.version.hip is None:
        return device_refusal(torch.cuda.get_device_capability(q.device), max(q.shape[3], v.shape[3]))
    return None


def _far(x: Tensor) -> bool:
    return any(size > 1 and stride >= FAR for size, stride in zip(x.shape[2:], x.stride()[2:], strict=True))


def device_refusal(capability: tuple[int, int], width: int) -> str | None:
    """Why a GPU of this compute capability cannot run heads of this width; None when it can."""
    found = ".".join(map(str, capability))
    if capability < OLDEST:
        return f"the GPU has compute capability {found}, expected at least {'.'.join(map(str, OLDEST))}"
    if capability in SMALL_MEMORY and width > WIDEST_THERE:
        return f"heads are {width} wide, expected at most {WIDEST_THERE} on compute capability {found} (shared memory)"
    return None


def forward(q: Tensor, k: Tensor, v: Tensor, factor: Tensor, seen: Seen) -> Tensor:
    """out [B,H,N,E] of the dtype of q, in the memory order [B,N,H,E]; factor float32 [N]."""
    from icrl.attention.gpu.launch import forward_launch
    from icrl.attention.gpu.layout import rows_first

    out = rows_first(q, v.shape[3])
    with torch.cuda.device_of(q):
        forward_launch(out, q, k, v, factor.contiguous(), seen).run()
    return out


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, factor: Tensor, seen: Seen
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv of the shapes of q, k, v, deterministic; views of one [B,N,3,H,D] when q, k, v are.

    grad * factor is rounded to the dtype of q before the products: float16 gradients need a loss scale, as ever.
    """
    from icrl.attention.gpu.launch import backward_launches
    from icrl.attention.gpu.layout import gradients

    dq, dk, dv = gradients(q, k, v)
    if _far(grad):
        grad = grad.contiguous()
    with torch.cuda.device_of(q):
        for launch in backward_launches(dq, dk, dv, grad, q, k, v, factor.contiguous(), seen):
            launch.run()
    return dq, dk, dv
