"""Zarr v3 shards as bytes, written and mapped without zarr.

With chunks cut on axis 0 only and inner codecs [bytes, crc32c], a shard is

    chunk | crc32c | chunk | crc32c | ... | index | crc32c of the index

where the index holds (offset, size) of each inner chunk as little-endian uint64, and 2**64 - 1 twice for an inner chunk
that is not there. The last chunk of an array is filled up with the fill value. Every chunk lies at a computed
offset, so a shard is mapped into memory as one strided array.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from icrl.store.objects import ObjectPath
from icrl.store.place import Place
from icrl.store.schema import MISSING, ArraySpec, Geometry

CRC_BYTES = 4


def crc32c_bytes(buffer: bytes | npt.NDArray[Any]) -> bytes:
    """The crc32c of a contiguous buffer as a shard holds it: four bytes, little-endian."""
    return int(google_crc32c.value(buffer)).to_bytes(CRC_BYTES, "little")


def chunk_sums(buffers: Sequence[bytes | npt.NDArray[Any]]) -> list[str]:
    """The crc32c of each inner chunk, in hex, from the buffers of `encode_shard`."""
    return [f"{int.from_bytes(crc, 'little'):08x}" for crc in buffers[1:-1:2] if isinstance(crc, bytes)]


def encode_shard(rows: npt.NDArray[Any], spec: ArraySpec, geometry: Geometry) -> list[bytes | npt.NDArray[Any]]:
    """The buffers of a shard of `rows` ([1..shard_rows, *row_shape], the spec's dtype); full chunks are not copied."""
    assert rows.dtype == spec.dtype, (spec.name, rows.dtype)
    assert rows.shape[1:] == spec.row_shape, (spec.name, rows.shape)
    assert 0 < len(rows) <= geometry.shard_rows, (spec.name, len(rows))
    rows = np.ascontiguousarray(rows)
    size = geometry.chunk_rows * spec.row_bytes + CRC_BYTES
    buffers: list[bytes | npt.NDArray[Any]] = []
    starts = range(0, len(rows), geometry.chunk_rows)
    for start in starts:
        part = rows[start : start + geometry.chunk_rows]
        if len(part) < geometry.chunk_rows:
            whole = np.full((geometry.chunk_rows, *spec.row_shape), spec.fill, spec.dtype)
            whole[: len(part)] = part
            part = whole
        buffers += [part, crc32c_bytes(part)]
    return [*buffers, index_bytes(geometry, len(starts), size)]


def index_bytes(geometry: Geometry, present: int, size: int) -> bytes:
    """Index of a shard with `present` inner chunks of `size` bytes (their crc32c included), and its own crc32c."""
    index = np.full((geometry.chunks, 2), MISSING, "<u8")
    index[:present, 0] = np.arange(present) * size
    index[:present, 1] = size
    return index.tobytes() + crc32c_bytes(index)


Chunks = tuple[npt.NDArray[Any], npt.NDArray[np.uint32]]
"""Inner chunks [present, chunk_rows, *row_shape] and their sums uint32[present] as stored."""


def map_shard(path: Place, spec: ArraySpec, geometry: Geometry, shard: int) -> Chunks:
    """A shard file, mapped read-only. Its chunks' sums are not checked here (`chunk_problem`).

    An object is read instead.

    Raises:
        ValueError: if the file has another size or index than a shard of this array; names it.
    """
    data: npt.NDArray[np.uint8]
    if isinstance(path, ObjectPath):
        data = np.frombuffer(path.read_bytes(), np.uint8)
    elif path.stat().st_size == 0:  # what is empty cannot be mapped
        data = np.fromfile(path, np.uint8)
    else:  # slicing a memmap itself is slow
        data = np.memmap(path, np.uint8, mode="r").view(np.ndarray)
    try:
        return shard_chunks(data, spec, geometry, shard)
    except ValueError as error:
        raise ValueError(f"{path} {error}") from None


def shard_chunks(data: npt.NDArray[np.uint8], spec: ArraySpec, geometry: Geometry, shard: int) -> Chunks:
    """The chunks in the bytes of a shard, as views.

    Raises:
        ValueError: if there are more or fewer bytes than in a shard of this array, or its index is another.
    """
    if data.size != (expected := geometry.shard_bytes(spec, shard)):
        raise ValueError(f"has {data.size} bytes, expected {expected}")
    start, stop = geometry.shard_range(shard)
    present = -(-(stop - start) // geometry.chunk_rows)
    stride = geometry.chunk_rows * spec.row_bytes + CRC_BYTES
    if data[present * stride :].tobytes() != index_bytes(geometry, present, stride):
        raise ValueError("has a damaged index")
    framed = data[: present * stride].reshape(present, stride)
    chunks = framed[:, :-CRC_BYTES].view(spec.dtype).reshape(present, geometry.chunk_rows, *spec.row_shape)
    return chunks, framed[:, -CRC_BYTES:].view("<u4")[:, 0]


def chunk_problem(values: npt.NDArray[Any], crc32c: np.uint32) -> str | None:
    """What is wrong with a whole inner chunk [chunk_rows, *row_shape], if its sum is not `crc32c`."""
    found = google_crc32c.value(values)
    return None if found == crc32c else f"has crc32c {found:08x}, expected {int(crc32c):08x}"
