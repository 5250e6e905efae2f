"""Linear forms of a token: the rows that the matrices of a construction are made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import overload

Row = Mapping[int, float]
"""sum_c row[c] h[c]."""


class Form:
    """A vector of n linear forms of a token h in R^D: M h for a sparse matrix M [n,D], written as it is read.

    a + b, a - b, 2 * a, -a, a[0], a[1:3], Form.cat(a, b). Where a layer writes, the rows say where to: adding x [n] at
    `into` [n] means h += sum_k x_k into[k].
    """

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows: tuple[Row, ...] = tuple(rows)

    @classmethod
    def cat(cls, *parts: Form) -> Form:
        """The forms of all parts, one after the other."""
        return cls(row for part in parts for row in part.rows)

    @classmethod
    def zeros(cls, n: int) -> Form:
        """n forms that are 0."""
        return cls([{}] * n)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Form]:
        return (Form([row]) for row in self.rows)

    @overload
    def __getitem__(self, index: int) -> Form: ...
    @overload
    def __getitem__(self, index: slice) -> Form: ...
    def __getitem__(self, index: int | slice) -> Form:
        return Form(self.rows[index] if isinstance(index, slice) else [self.rows[index]])

    def __add__(self, other: Form) -> Form:
        assert len(self) == len(other), f"{len(self)} and {len(other)} forms"
        return Form(_sum(a, b) for a, b in zip(self.rows, other.rows, strict=True))

    def __sub__(self, other: Form) -> Form:
        return self + -other

    def __neg__(self) -> Form:
        return -1.0 * self

    def __rmul__(self, factor: float) -> Form:
        return Form({column: factor * x for column, x in row.items()} for row in self.rows)


def _sum(a: Row, b: Row) -> Row:
    total = dict(a)
    for column, x in b.items():
        total[column] = total.get(column, 0.0) + x
    return total
