"""What a layer needs of a cache, and where its environments stand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor


class Slot(NamedTuple):
    """What is held for one attention: a key and a value of each key head."""

    heads: int
    """G."""
    key_width: int
    """D."""
    value_width: int
    """E."""


@dataclass(frozen=True)
class Now:
    """Where the environments stand before the new tokens."""

    lengths: Tensor
    """int32 [B], on the device: tokens held."""
    padding: Tensor | None
    """int32 [B], on the device: how many of the new tokens, from the first, are none; None: all of them are tokens."""
    aligned: int | None
    """The length of all environments where the host knows them to be equal."""
    longest: int
    """No environment holds more. The capacity unless aligned, so that a step is then the same work at every token."""


class HeldLayer(Protocol):
    """The keys and values of one slot."""

    @property
    def nbytes(self) -> int:
        """Memory taken."""
        ...

    def append_and_attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float, now: Now) -> Tensor:
        """Stores k [B,G,N,D] and v [B,G,N,E]; the attention [B,H,N,E] of q [B,H,N,D] over what is held then."""
        ...
