"""Where results lie in memory: rows before heads, so that the projections around attention need no copy.

Shapes: B batch, N rows, H heads, D width of a head, E width of a value.
"""

from __future__ import annotations

import torch
from torch import Tensor


def new_out(q_BHND: Tensor, v_BGTE: Tensor) -> Tensor:
    """Uninitialised [B,H,N,E], stored [B,N,H,E]: `out.transpose(1, 2).flatten(2)` is free."""
    batch, heads, n_new, _ = q_BHND.shape
    return q_BHND.new_empty(batch, n_new, heads, v_BGTE.shape[3]).transpose(1, 2)


def rows_first(x_BHND: Tensor) -> Tensor:
    """The same values stored [B,N,H,D]; no copy where they are already."""
    return x_BHND.transpose(1, 2).contiguous().transpose(1, 2)


def are_packed(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Are these [B,H,N,D] the three views of one contiguous [B,N,3,H,D]?"""
    _, heads, n_new, width = q.shape
    strides = (3 * n_new * heads * width, width, 3 * heads * width, 1)
    start = q.storage_offset()
    return (
        q.shape == k.shape == v.shape
        and q.stride() == k.stride() == v.stride() == strides
        and (k.storage_offset() - start, v.storage_offset() - start) == (heads * width, 2 * heads * width)
        and q.untyped_storage().data_ptr() == k.untyped_storage().data_ptr() == v.untyped_storage().data_ptr()
    )


def split_packed(qkv_BN3HD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Views q, k, v [B,H,N,D]."""
    q, k, v = qkv_BN3HD.permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def new_gradients(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Uninitialised dq, dk, dv: views of one [B,N,3,H,D] where q, k, v are, else each stored rows first."""
    if are_packed(q, k, v):
        batch, heads, n_new, width = q.shape
        return split_packed(q.new_empty(batch, n_new, 3, heads, width))
    dq, dk, dv = (torch.empty_like(x.transpose(1, 2), memory_format=torch.contiguous_format) for x in (q, k, v))
    return dq.transpose(1, 2), dk.transpose(1, 2), dv.transpose(1, 2)


def join_packed(dq: Tensor, dk: Tensor, dv: Tensor) -> Tensor:
    """dqkv [B,N,3,H,D]: the buffer that the three are views of, a copy only where they are not."""
    if not are_packed(dq, dk, dv):
        return torch.stack([x.transpose(1, 2) for x in (dq, dk, dv)], 2)
    batch, heads, n_new, width = dq.shape
    shape = (batch, n_new, 3, heads, width)
    strides = (3 * n_new * heads * width, 3 * heads * width, heads * width, width, 1)
    return dq.as_strided(shape, strides, dq.storage_offset())
