"""The residual stream of a construction: which coordinates hold what."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from icrl.constructions.form import Form


class Stream:
    """Named blocks of a token, one after the other: fields | logits | scratch | position (the theory preset's order).

    `stream["v"]` is the block as a `Form` to read from or to write to, `blocks["v"]` its slice of the D coordinates.
    A construction's blocks are fixed before its first layer is written; ValueError on a name given twice.
    """

    def __init__(
        self,
        fields: Mapping[str, int],
        n_actions: int,
        scratch: Mapping[str, int],
        position: tuple[str, ...] = ("index", "square", "one"),
    ) -> None:
        self.blocks: dict[str, slice] = {}
        start = 0
        widths = [*fields.items(), ("logits", n_actions), *scratch.items(), *((name, 1) for name in position)]
        for name, width in widths:
            if name in self.blocks:
                raise ValueError(f"block {name!r}: given twice")
            self.blocks[name] = slice(start, start + width)
            start += width
        self.width = start
        """D."""

    def __getitem__(self, name: str) -> Form:
        block = self.blocks[name]
        return Form({column: 1.0} for column in range(block.start, block.stop))

    def read(self, h: Tensor, name: str) -> Tensor:
        """The block [..., n] of tokens [..., D]."""
        return h[..., self.blocks[name]]

    @property
    def index(self) -> Form:
        """i."""
        return self["index"]

    @property
    def square(self) -> Form:
        """i^2."""
        return self["square"]

    @property
    def one(self) -> Form:
        """The constant 1."""
        return self["one"]

    def constants(self, *values: float) -> Form:
        """These numbers, as forms."""
        return Form.cat(*(value * self.one for value in values))

    def to_power_of_two(self, bound: float) -> float:
        """The smallest power of two that is at least `bound`: products of the position with it are exact."""
        return 2.0 ** math.ceil(math.log2(bound))


def bandit_stream(dim: int, n_actions: int, scratch: Mapping[str, int]) -> Stream:
    """The `paper` tokens of a bandit: action a_t [d], reward [1] | set [A d] | logits [A] | scratch | i, i^2, 1."""
    return Stream({"action": dim, "reward": 1, "action_set": n_actions * dim}, n_actions, scratch)
