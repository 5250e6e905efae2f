"""Decoding in torch, on any device, ReLU and softmax: where nothing faster is, and the specification of what is.

Tokens are the last axis in memory: the products of one or two queries with all keys run along it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from icrl.attention.decode.slot import Now, Slot

MAX_ROWS = 16
"""New tokens handled at once: a prefill's scores stay small."""


def refusal(kind: str, slots: Sequence[Slot], dtype: torch.dtype, device: torch.device) -> str | None:
    """None: it can hold everything."""
    return None


class Held:
    """Keys [B,G,D,capacity] and values [B,G,E,capacity] of one slot."""

    def __init__(
        self, kind: str, slot: Slot, batch: int, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.kind = kind
        self.keys, self.values = (
            torch.empty(batch, slot.heads, width, capacity, dtype=dtype, device=device)
            for width in (slot.key_width, slot.value_width)
        )

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    def append_and_attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float, now: Now) -> Tensor:
        batch, heads, n_new, _ = q.shape
        out = torch.empty(batch, n_new, heads, v.shape[3], dtype=q.dtype, device=q.device).transpose(1, 2)
        lengths, longest, aligned = now.lengths, now.longest, now.aligned
        for start in range(0, n_new, MAX_ROWS):
            rows = slice(start, min(start + MAX_ROWS, n_new))
            padding = None if now.padding is None else (now.padding - start).clamp(0, rows.stop - start)
            part = Now(lengths, padding, aligned, longest)
            self._store(k[:, :, rows], v[:, :, rows], part)
            out[:, :, rows] = self._attend(q[:, :, rows], k[:, :, rows], v[:, :, rows], scale, part)
            n = rows.stop - start
            lengths = lengths + n if padding is None else lengths + (n - padding)
            longest, aligned = min(longest + n, self.keys.shape[3]), None if aligned is None else aligned + n
        return out

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float, now: Now) -> Tensor:
        """Values of old tokens by a product, of new ones by selection: a row meets nothing of a later token."""
        batch, heads, n_new, _ = q.shape
        n_old, wide = now.longest, torch.promote_types(q.dtype, torch.float32)
        q = q.reshape(batch, k.shape[1], -1, n_new, q.shape[3]).to(wide)  # [B,G,H/G,N,D]
        n_read = n_old if now.aligned is None else n_old + n_new  # the new ones lie behind the old
        keys, values = (
            stored[..., :n].unsqueeze(2).to(wide) for stored, n in ((self.keys, n_read), (self.values, n_old))
        )
        scores = q @ keys
        if now.aligned is None:
            scores = torch.cat([scores, q @ k.to(wide).unsqueeze(2).transpose(3, 4)], -1)
        old, new = scores[..., :n_old], scores[..., n_old:]
        token = torch.arange(n_new, device=q.device)
        held = now.lengths.view(-1, 1, 1, 1, 1)
        padding = torch.zeros_like(held) if now.padding is None else now.padding.view(-1, 1, 1, 1, 1)
        visible = (token <= token.unsqueeze(-1)) & (token >= padding)  # [B,1,1,N,N]
        scores = scores.relu_() if self.kind == "relu" else scores.mul_(scale)
        unseen = 0.0 if self.kind == "relu" else -torch.inf
        new.masked_fill_(~visible, unseen)
        if now.aligned is None:
            stale = torch.arange(n_old, device=q.device) >= held
            old.masked_fill_(stale, unseen)
            values = values.masked_fill(stale, 0)
        factor: Tensor | float = scale / (held + token.unsqueeze(-1) + 1 - padding).to(wide)
        if self.kind == "softmax":
            weights, factor = scores.softmax(-1), 1.0
            old, new = weights[..., :n_old], weights[..., n_old:]
        newer = torch.where(visible.unsqueeze(-1), new.unsqueeze(-1) * v[:, :, None, None], 0).sum(-2)
        out = (old @ values.transpose(3, 4) + newer) * factor
        if now.padding is not None:
            out = out.masked_fill(token.unsqueeze(-1) < padding, 0)
        return out.reshape(batch, heads, n_new, -1)

    def _store(self, k: Tensor, v: Tensor, now: Now) -> None:
        if now.aligned is not None:
            stop = now.aligned + k.shape[2]
            for stored, fresh in ((self.keys, k), (self.values, v)):
                stored[..., now.aligned : stop] = fresh.transpose(2, 3)
            return
        environment = torch.arange(k.shape[0], device=k.device)
        for n in range(k.shape[2]):
            # what is no token is written too, and overwritten by the next
            place = now.lengths + n if now.padding is None else now.lengths + (n - now.padding).clamp(min=0)
            self.keys[environment, :, :, place] = k[:, :, n]
            self.values[environment, :, :, place] = v[:, :, n]
