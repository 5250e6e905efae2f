"""Decoding on a CPU, in C++: one pass over what is held, threads over environments; `decode.cpp` has the layout.

Results do not depend on the batch, the number of threads, or how many tokens a call brings.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from icrl import native
from icrl.attention.decode.slot import Now, Slot
from icrl.attention.layout import new_out

SOURCE = Path(__file__).with_name("decode.cpp")
LANES = 16
"""Tokens of a tile, as in `decode.cpp`."""

_TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}
_PROBLEM = struct.Struct("26qd")
_SMALL = 1 << 18
"""Cached numbers that one thread reads faster than another one starts."""


def refusal(kind: str, slots: Sequence[Slot], dtype: torch.dtype, device: torch.device) -> str | None:
    """Why it cannot be: softmax, another device or type, no compiler."""
    if kind != "relu":
        return f"the C++ kernel computes ReLU attention, got {kind}"
    if device.type != "cpu":
        return f"the C++ kernel runs on a CPU, got {device}"
    if dtype not in _TYPES:
        return f"the C++ kernel takes float32, float64 and bfloat16, got {dtype}"
    return native.refusal(SOURCE)


class Held:
    """Tiles [B,G,ceil(capacity / 16),D+E,16] of one slot."""

    def __init__(
        self, kind: str, slot: Slot, batch: int, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        assert kind == "relu"
        shape = (batch, slot.heads, -(-capacity // LANES), slot.key_width + slot.value_width, LANES)
        self.tiles = torch.empty(shape, dtype=dtype, device=device)

    @property
    def nbytes(self) -> int:
        return self.tiles.nbytes

    def append_and_attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float, now: Now) -> Tensor:
        batch, heads, n_new, key_width = q.shape
        value_width = v.shape[3]
        out = new_out(q, v)
        numbers = (now.longest + n_new) * self.tiles.stride(2) // LANES * batch * self.tiles.shape[1]
        problem = _PROBLEM.pack(
            *(x.data_ptr() for x in (q, k, v, self.tiles, out, now.lengths)),
            0 if now.padding is None else now.padding.data_ptr(),
            *q.stride(),
            *k.stride(),
            *v.stride(),
            *(batch, heads, k.shape[1], n_new, key_width, value_width, self.tiles.shape[2]),
            scale,
        )
        threads = 1 if numbers < _SMALL else torch.get_num_threads()
        if native.library(SOURCE).icrl_decode(problem, _TYPES[q.dtype], threads):
            raise MemoryError("out of memory for the scratch of the decoding kernel")
        return out
