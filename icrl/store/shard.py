"""Zarr v3 shards as bytes, written and mapped without zarr.

With chunks cut on axis 0 only and inner codecs [bytes, crc32c], a shard is

    chunk | crc32c | chunk | crc32c | ... | index | crc32c of the index

where the index holds (offset, size) of each inner chunk as little-endian uint64, and 2**64 - 1 twice for an inner chunk
that is not there. The last chunk of an array is filled up with the fill value. Every chunk lies at a computed
offset, so a shard is mapped into memory as one strided array.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from icrl.store.schema import MISSING, ArraySpec, Geometry

_CRC_BYTES = 4


def crc32c_bytes(buffer: bytes | npt.NDArray[Any]) -> bytes:
    """The crc32c of a contiguous buffer as a shard holds it: four bytes, little-endian."""
    return int(google_crc32c.value(buffer)).to_bytes(_CRC_BYTES, "little")


def crc32c_of(buffers: Iterable[bytes | npt.NDArray[Any]]) -> int:
    """The crc32c of several contiguous buffers, one after the other."""
    crc = 0
    for buffer in buffers:
        crc = google_crc32c.extend(crc, buffer)
    return crc


def crc32c_of_encoded(buffers: Sequence[bytes | npt.NDArray[Any]]) -> int:
    """`crc32c_of` what `encode_shard` returns, from the sums in it: no byte of a chunk is read again.

    A crc of a || b is M crc(a) ^ crc(b), where the matrix M over GF(2) depends on the length of b alone.
    """
    crc = 0
    for data, own in zip(buffers[::2], buffers[1::2], strict=True):
        assert isinstance(data, np.ndarray), type(data)
        columns, moved = _columns(data.nbytes), int.from_bytes(own, "little")
        for bit in range(32):
            if crc >> bit & 1:
                moved ^= columns[bit]
        crc = google_crc32c.extend(moved, own)
    return crc


@lru_cache(maxsize=64)
def _columns(size: int) -> tuple[int, ...]:
    """The columns of M for `size` bytes."""
    zeros = bytes(size)
    base = google_crc32c.extend(0, zeros)
    return tuple(google_crc32c.extend(1 << bit, zeros) ^ base for bit in range(32))


def encode_shard(rows: npt.NDArray[Any], spec: ArraySpec, geometry: Geometry) -> list[bytes | npt.NDArray[Any]]:
    """The buffers of a shard of `rows` ([1..shard_rows, *row_shape], the spec's dtype); full chunks are not copied."""
    assert rows.dtype == spec.dtype, (spec.name, rows.dtype)
    assert rows.shape[1:] == spec.row_shape, (spec.name, rows.shape)
    assert 0 < len(rows) <= geometry.shard_rows, (spec.name, len(rows))
    rows = np.ascontiguousarray(rows)
    size = geometry.chunk_rows * spec.row_bytes + _CRC_BYTES
    index = np.full((geometry.chunks, 2), MISSING, "<u8")
    buffers: list[bytes | npt.NDArray[Any]] = []
    for chunk, start in enumerate(range(0, len(rows), geometry.chunk_rows)):
        part = rows[start : start + geometry.chunk_rows]
        if len(part) < geometry.chunk_rows:
            whole = np.full((geometry.chunk_rows, *spec.row_shape), spec.fill, spec.dtype)
            whole[: len(part)] = part
            part = whole
        buffers += [part, crc32c_bytes(part)]
        index[chunk] = chunk * size, size
    return [*buffers, index, crc32c_bytes(index)]


def map_shard(path: Path, spec: ArraySpec, geometry: Geometry, shard: int) -> npt.NDArray[Any]:
    """The inner chunks of a shard file, mapped read-only: [chunks present, chunk_rows, *row_shape].

    Sums are not checked here (`icrl.store.verify`).

    Raises:
        ValueError: if the file has another size than a shard of this array; names it.
    """
    expected = geometry.shard_bytes(spec, shard)
    actual = path.stat().st_size
    if actual != expected:
        raise ValueError(f"{path} has {actual} bytes, expected {expected}: a damaged shard")
    mapped = np.memmap(path, np.uint8, mode="r").view(np.ndarray)  # slicing a memmap itself is slow
    start, stop = geometry.shard_range(shard)
    present = -(-(stop - start) // geometry.chunk_rows)
    stride = geometry.chunk_rows * spec.row_bytes + _CRC_BYTES
    chunks = mapped[: present * stride].reshape(present, stride)[:, :-_CRC_BYTES]
    return chunks.view(spec.dtype).reshape(present, geometry.chunk_rows, *spec.row_shape)
