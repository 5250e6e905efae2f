"""The KV cache of decoding: keys and values of every past token, per layer.

Tokens are the last axis in memory: the products of one or two queries with all keys run along it, which makes a
rollout about a seventh faster than tokens before features.
Shapes: B batch, H heads, N new tokens, T tokens held after the append, Tmax capacity, Dh width of a head.
"""

import torch
from torch import Tensor


class KVCache:
    """Keys and values of every layer, stored [layers,B,H,Dh,Tmax]; all B interactions are at the same token."""

    def __init__(
        self, layers: int, shape_BHTd: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device
    ) -> None:
        batch, heads, capacity, width = shape_BHTd
        shape = (layers, batch, heads, width, capacity)
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self.length = 0
        """Tokens held by every layer."""

    @property
    def batch(self) -> int:
        """B."""
        return self.keys.shape[1]

    def append(self, layer: int, k_BHNd: Tensor, v_BHNd: Tensor) -> tuple[Tensor, Tensor]:
        """Stores the new tokens of one layer; views [B,H,T,Dh] of all its keys and values.

        The length moves on with `advance`, once every layer has stored its part. ValueError past the capacity.
        """
        stop = self.length + k_BHNd.shape[2]
        if stop > self.keys.shape[4]:
            raise ValueError(f"{stop} tokens in a cache for {self.keys.shape[4]}: the horizon is over, reset first")
        keys, values = (stored[layer, ..., :stop].transpose(2, 3) for stored in (self.keys, self.values))
        keys[:, :, self.length :] = k_BHNd
        values[:, :, self.length :] = v_BHNd
        return keys, values

    def advance(self, n_tokens: int) -> None:
        """Counts the tokens that every layer has stored."""
        self.length += n_tokens

    def reset(self) -> None:
        """Forgets every token; the memory stays."""
        self.length = 0
