"""A KV cache whose parts differ in heads and widths: constructions have layers of many shapes.

Shapes: B batch, H heads, T tokens held after the append, Tmax capacity, r width of a key, c width of a value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from icrl.attention.cache import KVCache


class SlotCache(KVCache):
    """Keys and values of slots (H, r, c), stored [B,H,r,Tmax] and [B,H,c,Tmax] in one buffer each.

    `append` takes the number of a slot where `KVCache` takes a layer; all else is the same.
    """

    def __init__(
        self,
        slots: Sequence[tuple[int, int, int]],
        batch: int,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.keys, self._key_of = _views([(batch, heads, r, capacity) for heads, r, _ in slots], dtype, device)
        self.values, self._value_of = _views([(batch, heads, c, capacity) for heads, _, c in slots], dtype, device)
        self._batch, self._capacity = batch, capacity
        self.length = 0

    @property
    def batch(self) -> int:
        return self._batch

    def append(self, layer: int, k_BHNd: Tensor, v_BHNd: Tensor) -> tuple[Tensor, Tensor]:
        stop = self.length + k_BHNd.shape[2]
        if stop > self._capacity:
            raise ValueError(f"{stop} tokens in a cache for {self._capacity}: the horizon is over, reset first")
        keys, values = (stored[layer][..., :stop].transpose(2, 3) for stored in (self._key_of, self._value_of))
        keys[:, :, self.length :] = k_BHNd
        values[:, :, self.length :] = v_BHNd
        return keys, values


def _views(
    shapes: Sequence[tuple[int, ...]], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One buffer, and a view of each shape into it."""
    ends = list(accumulate((math.prod(shape) for shape in shapes), initial=0))
    buffer = torch.empty(ends[-1], dtype=dtype, device=device)
    return buffer, tuple(buffer[a:b].view(shape) for (a, b), shape in zip(pairwise(ends), shapes, strict=True))
