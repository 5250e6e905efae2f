"""The KV cache of decoding: keys and values of every past token, per layer.

Shapes: B batch, H heads, N new tokens, T tokens held after the append, Tmax capacity, Dh width of a head.
"""

import torch
from torch import Tensor


class KVCache:
    """Keys and values [layers][B,H,Tmax,Dh]; all B interactions are at the same token."""

    def __init__(
        self, layers: int, shape_BHTd: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (layers, *shape_BHTd)
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
        if stop > self.keys.shape[3]:
            raise ValueError(f"{stop} tokens in a cache for {self.keys.shape[3]}: the horizon is over, reset first")
        self.keys[layer, :, :, self.length : stop] = k_BHNd
        self.values[layer, :, :, self.length : stop] = v_BHNd
        return self.keys[layer, :, :, :stop], self.values[layer, :, :, :stop]

    def advance(self, n_tokens: int) -> None:
        """Counts the tokens that every layer has stored."""
        self.length += n_tokens

    def reset(self) -> None:
        """Forgets every token; the memory stays."""
        self.length = 0
