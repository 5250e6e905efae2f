"""ReLU attention on a CPU, in C++: a backend as `icrl.attention.problem` has it.

Scores live in tiles that stay in cache, sums are made in float32 (float64 for float64 inputs), each (batch, head) pair
is one thread's, so results do not depend on the number of threads. `core.h` is one pair, `kernels.cpp` its C ABI.
Work is divided over `torch.get_num_threads()` threads.
"""

from __future__ import annotations

import struct
from pathlib import Path

import torch
from torch import Tensor

from icrl import native
from icrl.attention.layout import new_gradients, new_out
from icrl.attention.problem import Seen

MAX_WIDTH = 256
SOURCE = Path(__file__).with_name("kernels.cpp")

_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}
_SMALL = 1 << 19
"""Products (B H N T D) that one thread makes faster than another one starts."""
_PROBLEM = struct.Struct("30q")
_TENSOR = struct.Struct("5q")


def refusal(q: Tensor, k: Tensor, v: Tensor, seen: Seen) -> str | None:
    """Why this backend cannot compute it, None when it can: another device or type, D or E > 256, no compiler."""
    if q.device.type != "cpu":
        return f"the CPU kernel takes CPU tensors, got {q.device}"
    if q.dtype not in _TYPES:
        return f"the CPU kernel takes float32, bfloat16, float16 and float64, got {q.dtype}"
    width = max(q.shape[3], v.shape[3])
    if width > MAX_WIDTH:
        return f"the CPU kernel takes widths of a head up to {MAX_WIDTH}, got {width}"
    return native.refusal(SOURCE)


def forward(q: Tensor, k: Tensor, v: Tensor, factor: Tensor, seen: Seen) -> Tensor:
    """factor_i sum_{j seen by i} relu(<q_i, k_j>) v_j, [B,H,N,E] over memory [B,N,H,E]."""
    out = new_out(q, v)
    problem, _kept = _problem(q, k, v, factor, seen)
    _checked(native.library(SOURCE).relu_attention_forward(problem, _tensor(out)))
    return out


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, factor: Tensor, seen: Seen
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv for the gradient of `forward`'s result; views of one [B,N,3,H,D] when q, k and v are."""
    dq, dk, dv = new_gradients(q, k, v)
    problem, _kept = _problem(q, k, v, factor, seen)
    tensors = b"".join(map(_tensor, (grad, dq, dk, dv)))
    _checked(native.library(SOURCE).relu_attention_backward(problem, tensors))
    return dq, dk, dv


def _tensor(x: Tensor) -> bytes:
    return _TENSOR.pack(x.data_ptr(), *x.stride())


def _problem(q: Tensor, k: Tensor, v: Tensor, factor: Tensor, seen: Seen) -> tuple[bytes, tuple[Tensor, ...]]:
    """The C struct, and the tensors that must outlive the call."""
    batch, heads, n_queries, width = q.shape
    n_keys = k.shape[2]
    factor = factor.to(torch.float64 if q.dtype == torch.float64 else torch.float32).contiguous()
    documents = None if seen.documents is None else seen.documents.to(torch.int32).contiguous()
    small = batch * heads * n_queries * n_keys * width < _SMALL
    packed = _PROBLEM.pack(
        _TYPES[q.dtype],
        1 if small else torch.get_num_threads(),
        batch,
        heads,
        k.shape[1],
        n_queries,
        n_keys,
        width,
        v.shape[3],
        seen.causal,
        seen.offset,
        seen.window or 0,
        0 if documents is None else documents.data_ptr(),
        0 if documents is None else documents.shape[0] - 1,
        factor.data_ptr(),
        q.data_ptr(),
        *q.stride(),
        k.data_ptr(),
        *k.stride(),
        v.data_ptr(),
        *v.stride(),
    )
    return packed, (factor,) if documents is None else (factor, documents)


def _checked(status: int) -> None:
    if status == 1:
        raise MemoryError("no memory for the scratch of the attention kernel")
    if status == 2:
        raise ValueError("cu_seqlens: expected to ascend from 0 to the number of tokens")
