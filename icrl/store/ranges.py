"""Inner chunks of an object store by ranges: every chunk lies at a computed offset, so no index is read.

A chunk is asked for together with those that are said to follow, several requests in flight, and checked against its
crc32c. What was read last stays in memory, up to a bound.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from icrl.store.objects import ObjectPath
from icrl.store.place import Place
from icrl.store.schema import ArraySpec, Geometry
from icrl.store.shard import CRC_BYTES, crc32c_bytes

Arrays = dict[str, npt.NDArray[Any]]

KEPT_BYTES = 128 * 2**20
"""Most memory for chunks that were read; more only while one chunk and its successors need it."""
BATCH_BYTES = 64 * 2**20
"""Most that is asked for at once."""
IN_FLIGHT = 16
"""Requests at once; each is a few megabytes at most."""


@lru_cache(maxsize=1)
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="icrl-ranges")


class RangeReader:
    """The inner chunks of one split in an object store."""

    def __init__(
        self, file: Callable[[ArraySpec, int], Place], specs: tuple[ArraySpec, ...], geometry: Geometry
    ) -> None:
        self._file = file
        self._specs = specs
        self._geometry = geometry
        self._bytes = geometry.chunk_rows * sum(spec.row_bytes for spec in specs)
        self._kept: OrderedDict[int, Arrays] = OrderedDict()
        self._next: Sequence[int] = ()

    def will_need(self, chunks: Sequence[int]) -> None:
        """The order in which chunks will be asked for."""
        self._next = chunks

    def chunk(self, chunk: int) -> Arrays:
        """One inner chunk of every array, read-only: [rows, *row_shape].

        Raises:
            ValueError: an object ends too early, or a chunk does not have its crc32c; names it.
            OSError: the store does not answer.
        """
        if chunk not in self._kept:
            self._fetch(self._with_successors(chunk))
        self._kept.move_to_end(chunk)
        return self._kept[chunk]

    def _with_successors(self, chunk: int) -> list[int]:
        following = [chunk]
        if chunk in self._next:
            place = self._next.index(chunk)
            following = [int(c) for c in self._next[place : place + max(1, BATCH_BYTES // self._bytes)]]
        return [c for c in dict.fromkeys(following) if c not in self._kept]

    def _fetch(self, chunks: list[int]) -> None:
        by_shard: dict[int, list[int]] = defaultdict(list)
        for chunk in sorted(chunks):
            by_shard[chunk // self._geometry.chunks].append(chunk)
        asked = [(spec, shard, inside) for shard, inside in by_shard.items() for spec in self._specs]
        found: dict[int, Arrays] = {chunk: {} for chunk in chunks}
        for (spec, _, inside), parts in zip(asked, _threads().map(self._read, asked), strict=True):
            for chunk, part in zip(inside, parts, strict=True):
                found[chunk][spec.name] = part
        while self._kept and (len(self._kept) + len(found)) * self._bytes > KEPT_BYTES:
            self._kept.popitem(last=False)
        self._kept |= found

    def _read(self, asked: tuple[ArraySpec, int, list[int]]) -> list[npt.NDArray[Any]]:
        """The given chunks of one array's shard."""
        spec, shard, chunks = asked
        geometry = self._geometry
        path = self._file(spec, shard)
        assert isinstance(path, ObjectPath), path
        content = geometry.chunk_rows * spec.row_bytes
        starts = [(chunk - shard * geometry.chunks) * (content + CRC_BYTES) for chunk in chunks]
        rows = []
        for chunk, part in zip(chunks, path.read_ranges(starts, [content + CRC_BYTES] * len(chunks)), strict=True):
            values = np.frombuffer(part, np.uint8)
            if crc32c_bytes(values[:content]) != values[content:].tobytes():
                raise ValueError(f"{path}: chunk {chunk} does not have its crc32c")
            start, stop = geometry.chunk_range(chunk)
            rows.append(values[:content].view(spec.dtype).reshape(geometry.chunk_rows, *spec.row_shape)[: stop - start])
        return rows
