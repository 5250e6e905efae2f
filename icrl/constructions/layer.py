"""One layer under construction: heads and neurons are added one by one, and become a `FactoredBlock`."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

from icrl.constructions.form import Form, Row
from icrl.constructions.stream import Stream
from icrl.model import FactoredBlock, HeadGroup, SparseMap


@dataclass(frozen=True)
class Head:
    """h_i += sum_j (1/i) relu(<query h_i, key h_j>) sum_k (value h_j)_k into[k]."""

    query: Form
    key: Form
    value: Form
    into: Form


class Layer:
    """Attention, then MLP. `head` and `neurons` add to it; the primitives are written with these two.

    Heads with the same Q and K become one: M counts different scores.
    """

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self._heads: list[Head] = []
        self._neurons: list[tuple[Row, Row]] = []

    def head(self, query: Form, key: Form, value: Form, into: Form) -> None:
        """A head: Q = query [r], K = key [r], V = into' value, both [c].

        Scores add up in the order of the rows: what must cancel exactly comes first.
        """
        assert len(query) == len(key), f"query {len(query)}, key {len(key)}"
        assert len(value) == len(into), f"value {len(value)}, into {len(into)}"
        self._heads.append(Head(query, key, value, into))

    def neurons(self, read: Form, into: Form) -> None:
        """Neurons: h += sum_k relu((read h)_k) into[k]."""
        assert len(read) == len(into), f"read {len(read)}, into {len(into)}"
        self._neurons += zip(read.rows, into.rows, strict=True)

    def build(self, slot: int, radius: float | None = None) -> FactoredBlock:
        """The block, in float64; heads of the same shape that share keys stand together."""
        width = self.stream.width
        groups: list[HeadGroup] = []
        project: list[Row] = []
        write: list[Row] = []
        for heads in _grouped(_merged(self._heads)):
            first = heads[0][0]
            groups.append(HeadGroup(sum(map(len, heads)), len(heads), len(first.query), len(first.value)))
            project += [row for sharing in heads for head in sharing for row in head.query.rows]
            project += [row for sharing in heads for row in sharing[0].key.rows]
            project += [row for sharing in heads for row in sharing[0].value.rows]
            write += [row for sharing in heads for head in sharing for row in head.into.rows]
        neurons = [_balanced(read, into) for read, into in self._neurons]
        return FactoredBlock(
            tuple(groups),
            SparseMap(project, width),
            SparseMap(_transposed(write, width), len(write)),
            SparseMap([read for read, _ in neurons], width),
            SparseMap(_transposed([into for _, into in neurons], width), len(neurons)),
            slot=slot,
            radius=radius,
        )


def _merged(heads: list[Head]) -> list[Head]:
    """Heads with the same scores as one: its V is the sum of theirs."""
    same: dict[object, list[Head]] = defaultdict(list)
    for head in heads:
        same[_key(head.query), _key(head.key)].append(head)
    return [
        Head(each[0].query, each[0].key, Form.cat(*(h.value for h in each)), Form.cat(*(h.into for h in each)))
        for each in same.values()
    ]


def _grouped(heads: list[Head]) -> list[list[list[Head]]]:
    """Groups of (r, c, heads to a key); in a group, lists of heads with the same key and value."""
    sharing: dict[object, list[Head]] = defaultdict(list)
    for head in heads:
        sharing[_key(head.key), _key(head.value)].append(head)
    groups: dict[tuple[int, int, int], list[list[Head]]] = defaultdict(list)
    for same in sharing.values():
        groups[len(same[0].query), len(same[0].value), len(same)].append(same)
    return list(groups.values())


def _balanced(read: Row, into: Row) -> tuple[Row, Row]:
    """The same neuron with rows of W_1 and columns of W_2 of about the same norm, for a small |||theta|||.

    relu(g x) = g relu(x); g is a power of two, which costs no bit.
    """
    norms = [math.hypot(*row.values()) for row in (read, into)]
    if not all(norms):
        return {}, {}
    g = 2.0 ** round(math.log2(norms[1] / norms[0]) / 2)
    return {c: g * x for c, x in read.items()}, {c: x / g for c, x in into.items()}


def _key(form: Form) -> tuple[tuple[tuple[int, float], ...], ...]:
    """Something to compare forms by."""
    return tuple(tuple(sorted(row.items())) for row in form.rows)


def _transposed(columns: list[Row], height: int) -> list[dict[int, float]]:
    """The rows of the matrix with these columns."""
    rows: list[dict[int, float]] = [{} for _ in range(height)]
    for place, column in enumerate(columns):
        for row, x in column.items():
            rows[row][place] = x
    return rows
