"""The cache of decoding: keys and values of every past token, per layer, for environments that may start and end apart.

A step is `append_and_attend` of every layer, then `advance`. Lengths lie on the device and nothing of a step waits for
it; the host keeps a bound of them for the capacity. A step of environments that are not aligned is the same operations
at every token, so a CUDA graph of it may be replayed; `replayed` keeps the host's bound then.

Shapes: B environments, H query heads, G key heads, N new tokens, D and E widths of a key and a value.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from icrl.attention.decode import HeldLayer, Now, Slot, native, plain
from icrl.attention.decode import device as on_gpu

Backend = Literal["auto", "native", "device", "plain"]
_BACKENDS: dict[str, ModuleType] = {"native": native, "device": on_gpu, "plain": plain}
"""The fastest first."""


class KVCache:
    """Keys and values of `slots`, one for each attention of the model, of B environments for `capacity` tokens.

    `backend` auto takes the first that can hold the slots; a name insists on one. ValueError when that cannot, with its
    reason.
    """

    def __init__(
        self,
        slots: Sequence[Slot],
        batch: int,
        capacity: int,
        *,
        kind: Literal["relu", "softmax"] = "relu",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        backend: Backend = "auto",
    ) -> None:
        device = torch.device(device)
        self.slots, self.batch, self.capacity, self.dtype = tuple(slots), batch, capacity, dtype
        self.backend = _chosen(backend, kind, self.slots, dtype, device)
        make = _BACKENDS[self.backend].Held
        with torch.inference_mode(mode=False):  # what inference mode makes cannot be written to outside it
            self.layers: list[HeldLayer] = [make(kind, slot, batch, capacity, dtype, device) for slot in self.slots]
            self.lengths = torch.zeros(batch, dtype=torch.int32, device=device)
        """int32 [B], on the device: tokens held."""
        self.padding: Tensor | None = None
        """int32 [B], on the device: how many of the next step's tokens, from the first, are none: they are not stored
        and their rows mean nothing. None, as after every step: all are tokens."""
        self.aligned = True
        """Whether the host knows that all environments hold the same number of tokens."""
        self._counted = 0
        self._began = np.zeros(batch, np.int64)
        """What `_counted` was when each environment was reset."""
        self._oldest = 0

    @property
    def nbytes(self) -> int:
        """Memory taken by keys and values."""
        return sum(layer.nbytes for layer in self.layers)

    @property
    def longest(self) -> int:
        """No environment holds more tokens; exact while they are aligned."""
        return self._counted - self._oldest

    @property
    def first(self) -> int | Tensor:
        """Position of the next new token: one number while aligned, else int32 [B]; before 0 lies padding."""
        if self.aligned:
            return self.longest
        return self.lengths if self.padding is None else self.lengths - self.padding

    def append_and_attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float = 1.0) -> Tensor:
        """Stores k [B,G,N,D] and v [B,G,N,E]; attention [B,H,N,E] of q [B,H,N,D] over all tokens up to each row's own.

        Any strides; out lies in memory as [B,N,H,E]. There is no backward pass. ValueError past the capacity, for other
        shapes than the slot's, or when a gradient is asked for.
        """
        self._require(layer, q, k, v)
        aligned = self.longest if self.aligned and self.padding is None else None
        now = Now(self.lengths, self.padding, aligned, self.capacity if aligned is None else aligned)
        return self.layers[layer].append_and_attend(q, k, v, scale, now)

    def advance(self, n_tokens: int) -> None:
        """Counts the tokens that every layer has stored, less the padding; there is none after it."""
        if self.padding is None:
            self.lengths += n_tokens
        else:
            self.lengths += n_tokens - self.padding
            self.aligned, self.padding = False, None
        self._counted += n_tokens

    def replayed(self, n_tokens: int) -> None:
        """Counts on the host what a replayed graph advanced on the device; before the replay. ValueError past the
        capacity."""
        self._require_room(n_tokens)
        self._counted += n_tokens

    def reset(self, which: Tensor | npt.NDArray[np.int64 | np.bool_] | Sequence[int] | None = None) -> None:
        """Forgets every token of these environments (indices, or bool [B]); None: of all, which are aligned again."""
        self.padding = None
        if which is None:
            self.lengths.zero_()
            self._counted, self._oldest, self.aligned = 0, 0, True
            self._began[:] = 0
            return
        chosen = self._mask(torch.as_tensor(which, device="cpu"))
        self.lengths.masked_fill_(chosen.to(self.lengths.device), 0)
        self._began[chosen.numpy()] = self._counted
        self._oldest = int(self._began.min(initial=self._counted))
        self.aligned = False

    def _mask(self, which: Tensor) -> Tensor:
        """bool [B] of a mask or of indices."""
        if which.dtype == torch.bool:
            if which.shape != (self.batch,):
                raise ValueError(f"which = a mask of shape {tuple(which.shape)}: expected ({self.batch},)")
            return which
        if which.numel() and (which.is_floating_point() or which.is_complex()):
            raise ValueError(f"which = {which.tolist()}: expected indices of environments or a mask of bools")
        indices = which.long().flatten()
        wrong = indices[(indices < 0) | (indices >= self.batch)]
        if len(wrong):
            raise ValueError(f"which = {int(wrong[0])}: expected an environment from 0 to {self.batch - 1}")
        return torch.zeros(self.batch, dtype=torch.bool, device="cpu").index_fill_(0, indices, value=True)

    def _require_room(self, n_new: int) -> None:
        if self.longest + n_new > self.capacity:
            raise ValueError(
                f"{self.longest + n_new} tokens in a cache for {self.capacity}: the horizon is over, reset first"
            )

    def _require(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> None:
        n_new, slot = q.shape[2], self.slots[layer]
        self._require_room(n_new)
        expected = ((self.batch, slot.heads, n_new, slot.key_width), (self.batch, slot.heads, n_new, slot.value_width))
        if (k.shape, v.shape) != expected or q.shape[0] != self.batch or q.shape[3] != slot.key_width:
            raise ValueError(
                f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}: expected [B,H,N,D], [B,G,N,D], [B,G,N,E] "
                f"with B = {self.batch}, G = {slot.heads}, D = {slot.key_width}, E = {slot.value_width}"
            )
        if q.shape[1] % slot.heads:
            raise ValueError(f"q has {q.shape[1]} heads: expected a multiple of the cache's {slot.heads}")
        if not q.device == k.device == v.device == self.lengths.device:
            raise ValueError(f"q {q.device}, k {k.device}, v {v.device}: expected {self.lengths.device}, the cache's")
        if not q.dtype == k.dtype == v.dtype == self.dtype:
            raise ValueError(f"q {q.dtype}, k {k.dtype}, v {v.dtype}: expected {self.dtype}, the cache's")
        if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
            raise ValueError("decoding has no backward pass: call it under torch.inference_mode() or torch.no_grad()")


def _chosen(
    backend: Backend, kind: str, slots: Sequence[Slot], dtype: torch.dtype, device: torch.device
) -> Literal["native", "device", "plain"]:
    """Name of the backend that will hold the slots."""
    for name, module in _BACKENDS.items():
        if backend in {"auto", name}:
            reason = module.refusal(kind, slots, dtype, device)
            if reason is None:
                return name  # type: ignore[return-value]
            if backend == name:
                raise ValueError(f"backend = {backend}: {reason}; backend='auto' takes what can")
    raise ValueError(f"backend = {backend}: expected auto, {' or '.join(_BACKENDS)}")
