"""Decoding on a GPU: the Triton kernel of `icrl.attention.gpu.decode`, one launch for each new token of a layer.

Every token of a cache is one run of memory, [B,capacity,2,G,D]. A step asks the host nothing, so that one CUDA graph of
it replays at every token. A prefill from the beginning is stored at once and attends as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from icrl.attention import gpu
from icrl.attention.decode.slot import Now, Slot
from icrl.attention.problem import Seen

STEP = 4
"""Most new tokens that are handled one by one when all that came before is none."""


def refusal(kind: str, slots: Sequence[Slot], dtype: torch.dtype, device: torch.device) -> str | None:
    """Why it cannot be: softmax, another device or type, keys and values of different widths, no Triton."""
    if kind != "relu":
        return f"the Triton kernel computes ReLU attention, got {kind}"
    for slot in slots:
        if slot.key_width != slot.value_width:
            return f"the Triton kernel takes keys and values of one width, got {slot.key_width} and {slot.value_width}"
        like = torch.empty(1, slot.heads, 1, slot.key_width, dtype=dtype, device=device)
        if (reason := gpu.refusal(like, like, like, Seen())) is not None:
            return reason
    return None


class Held:
    """Keys and values [B,capacity,2,G,D] of one slot."""

    def __init__(
        self, kind: str, slot: Slot, batch: int, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        assert kind == "relu"
        self.cache = torch.empty(batch, capacity, 2, slot.heads, slot.key_width, dtype=dtype, device=device)

    @property
    def nbytes(self) -> int:
        return self.cache.nbytes

    def append_and_attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float, now: Now) -> Tensor:
        from icrl.attention.gpu.decode import append_and_attend

        n_new = q.shape[2]
        if now.aligned == 0 and n_new > STEP:
            self.cache[:, :n_new, 0], self.cache[:, :n_new, 1] = k.transpose(1, 2), v.transpose(1, 2)
            position = torch.arange(1, n_new + 1, device=q.device, dtype=torch.float32)
            return gpu.forward(q, k, v, scale / position, Seen())
        out = torch.empty(q.shape[0], n_new, q.shape[1], v.shape[3], dtype=q.dtype, device=q.device)
        for n in range(n_new):
            # what is no token is written too, and overwritten by the next
            held = now.lengths + n if now.padding is None else now.lengths + (n - now.padding).clamp(min=0)
            out[:, n] = append_and_attend(q[:, :, n], k[:, :, n], v[:, :, n], self.cache, held, scale)
        return out.transpose(1, 2)
