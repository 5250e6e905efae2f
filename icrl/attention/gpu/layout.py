"""Memory layouts of results: what the caller does next with them needs no copy."""

from __future__ import annotations

import torch
from torch import Tensor


def rows_first(like: Tensor, width: int) -> Tensor:
    """An empty [B,H,N,width] in the memory order [B,N,H,width]: `transpose(1, 2).reshape(B, N, -1)` is a view."""
    batch, heads, rows, _ = like.shape
    return like.new_empty((batch, rows, heads, width)).transpose(1, 2)


def is_packed(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Are q, k and v the three views of one contiguous tensor [B,N,3,H,D]?"""
    _, heads, rows, width = q.shape
    if not (q.shape == k.shape == v.shape):
        return False
    size = heads * width
    strides = (rows * 3 * size, width, 3 * size, 1)
    same_memory = q.untyped_storage().data_ptr() == k.untyped_storage().data_ptr() == v.untyped_storage().data_ptr()
    return (
        same_memory
        and q.stride() == k.stride() == v.stride() == strides
        and k.storage_offset() - q.storage_offset() == v.storage_offset() - k.storage_offset() == size
    )


def gradients(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Empty gradients; views of one [B,N,3,H,D] when q, k and v are, otherwise [B,N,H,D] in memory each."""
    if not is_packed(q, k, v):
        return rows_first(q, q.shape[3]), rows_first(k, k.shape[3]), rows_first(v, v.shape[3])
    batch, heads, rows, width = q.shape
    packed = torch.empty((batch, rows, 3, heads, width), dtype=q.dtype, device=q.device)
    dq, dk, dv = packed.permute(2, 0, 3, 1, 4).unbind(0)
    return dq, dk, dv
