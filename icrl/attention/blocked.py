"""ReLU attention in blocks whose scores stay in cache; saves q, k, v only, the backward pass recomputes the scores.

relu(a s) = a relu(s) for a > 0, so the scale and 1/i leave the score loop: one multiply per output element, and in the
backward pass one multiply of the incoming gradient. There is no row maximum and no row sum, so blocks of keys just add.
Shapes: P = B * H pairs, N queries (the last N of T positions), T keys, Dh width of a head.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CACHE_BYTES = 512 * 1024
"""Size of a block of scores on a CPU: half of a typical L2."""
MAX_ROWS = 64
"""Rows of a block of scores on a CPU: wider blocks waste work above the diagonal, narrower ones are slow products."""


def causal_mask(n_new: int, n_keys: int, device: torch.device) -> Tensor:
    """bool [n_new,n_keys]: may the i-th of the last n_new positions see position j?"""
    return torch.ones(n_new, n_keys, dtype=torch.bool, device=device).tril(n_keys - n_new)


def row_factor(n_new: int, n_keys: int, scale: float, like: Tensor) -> Tensor:
    """scale / i for the last n_new positions, [n_new,1]."""
    position = torch.arange(n_keys - n_new + 1, n_keys + 1, device=like.device)
    dtype = torch.promote_types(like.dtype, torch.float32)
    return (scale / position.to(dtype)).to(like.dtype).unsqueeze(-1)


class Block(NamedTuple):
    """One block of scores: its pairs, its query rows, and the keys that its last row sees."""

    pairs: slice
    rows: slice
    keys: slice


def blocks(q_PNd: Tensor, n_keys: int) -> Iterator[Block]:
    """Cuts the scores into blocks; on an accelerator one block holds everything."""
    n_pairs, n_new, _ = q_PNd.shape
    on_cpu = q_PNd.device.type == "cpu"
    height = MAX_ROWS if on_cpu and n_new > MAX_ROWS * 3 // 2 else n_new
    for start in range(0, n_new, height):
        stop = min(start + height, n_new)
        seen = n_keys - n_new + stop
        per_pair = (stop - start) * seen * q_PNd.element_size()
        group = max(1, CACHE_BYTES // per_pair) if on_cpu else n_pairs
        for first in range(0, n_pairs, group):
            yield Block(slice(first, first + group), slice(start, stop), slice(0, seen))


def _weights(q: Tensor, k: Tensor) -> Tensor:
    """relu(<q_i, k_j>) for j <= i, else 0; `tril_` selects, so that no later score, NaN included, reaches a row."""
    scores = torch.bmm(q, k.transpose(1, 2)).relu_()
    rows, keys = scores.shape[1:]
    return scores.tril_(keys - rows) if rows > 1 else scores


def _forward(q: Tensor, k: Tensor, v: Tensor, factor: Tensor) -> Tensor:
    out = torch.empty(*q.shape[:2], v.shape[2], dtype=q.dtype, device=q.device)
    for pairs, rows, keys in blocks(q, k.shape[1]):
        weights = _weights(q[pairs, rows], k[pairs, keys])
        torch.mul(torch.bmm(weights, v[pairs, keys]), factor[rows], out=out[pairs, rows])
    return out


def _backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, factor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for pairs, rows, keys in blocks(q, k.shape[1]):
        q_, k_, v_ = q[pairs, rows], k[pairs, keys], v[pairs, keys]
        grad_ = grad[pairs, rows] * factor[rows]
        weights = _weights(q_, k_)
        gate = torch.bmm(grad_, v_.transpose(1, 2))
        # a masked weight is 0, so the derivative of relu masks too
        torch.ops.aten.threshold_backward.grad_input(gate, weights, 0, grad_input=gate)
        dq[pairs, rows] = torch.bmm(gate, k_)
        dk[pairs, keys].baddbmm_(gate.transpose(1, 2), q_)
        dv[pairs, keys].baddbmm_(weights.transpose(1, 2), grad_)
    return dq, dk, dv


class _ReluAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.scale = scale
        return _forward(q, k, v, row_factor(q.shape[1], k.shape[1], scale, q))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v = ctx.saved_tensors
        return *_backward(grad, q, k, v, row_factor(q.shape[1], k.shape[1], ctx.scale, q)), None


def blocked_relu_attention(q_BHNd: Tensor, k_BHTd: Tensor, v_BHTd: Tensor, scale: float = 1.0) -> Tensor:
    """`relu_attention_reference` without T x T memory on a CPU; differentiable once; scale > 0."""
    q, k, v = (x.flatten(0, 1) for x in (q_BHNd, k_BHTd, v_BHTd))
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        out: Tensor = _ReluAttention.apply(q, k, v, scale)  # type: ignore[no-untyped-call]
    else:
        out = _forward(q, k, v, row_factor(q.shape[1], k.shape[1], scale, q))
    return out.view(*q_BHNd.shape[:2], *out.shape[1:])
