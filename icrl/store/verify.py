"""Checking a dataset: every sum, and a sample of chunks made again bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from icrl.store.commit import missing, read_recipe, read_record, record_file, shard_file
from icrl.store.place import Place, size
from icrl.store.reader import SplitReader, read_layout
from icrl.store.recipe import SPLITS
from icrl.store.schema import Geometry
from icrl.store.shard import crc32c_of

Regenerate = Callable[[str, npt.NDArray[np.int64]], Mapping[str, npt.NDArray[Any]]]
"""(split, indices) -> the stored arrays of these trajectories, made again."""


@dataclass(frozen=True)
class Fault:
    """One thing wrong: the file, what is wrong with it, and the shard to write again."""

    path: Place
    problem: str
    split: str
    shard: int

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}"


@dataclass(frozen=True)
class Verification:
    """What was checked and what was found."""

    shards: int
    bytes: int
    chunks_regenerated: int
    faults: tuple[Fault, ...]


def verify(dataset: Place, regenerate: Regenerate | None = None, *, sample: int = 8, seed: int = 0) -> Verification:
    """Check each committed file's size and crc32c, then regenerate `sample` inner chunks of each split.

    Chunks of shards that already have a fault are left out of the sample, which is a function of `seed`.

    Raises:
        ValueError: if there is no dataset of this schema at this place.
    """
    if read_recipe(dataset) is None:
        raise ValueError(f"{dataset} holds no dataset")
    faults: list[Fault] = []
    shards = total = chunks = 0
    for split in SPLITS:
        specs, geometry = read_layout(dataset, split)
        absent = missing(dataset, split, specs, geometry)
        for shard in range(geometry.n_shards):
            paths = {spec.name: shard_file(dataset, split, spec, shard) for spec in specs}
            found = _check_shard(dataset, split, shard, paths)
            faults += found
            shards += 1
            total += 0 if found else sum(size(path) for path in paths.values())
        if regenerate is not None and not absent:
            bad = {fault.shard for fault in faults if fault.split == split}
            sampled = _sample(geometry, bad, sample, seed)
            faults += _check_values(SplitReader(dataset, split), sampled, regenerate)
            chunks += len(sampled)
    return Verification(shards, total, chunks, tuple(faults))


def _check_shard(dataset: Place, split: str, shard: int, paths: Mapping[str, Place]) -> list[Fault]:
    record_path = record_file(dataset, split, shard)
    try:
        record = read_record(dataset, split, shard)
    except ValueError as error:
        return [Fault(record_path, str(error), split, shard)]
    if record is None:
        return [Fault(record_path, "shard is not committed", split, shard)]
    faults = []
    for name, path in paths.items():
        expected = record["arrays"].get(name)
        if problem := _check_file(path, expected):
            faults.append(Fault(path, problem, split, shard))
    return faults


def _check_file(path: Place, expected: Mapping[str, Any] | None) -> str | None:
    if expected is None:
        return "its commit record does not know this array"
    if (found := size(path)) == -1:
        return "file is gone"
    if found != expected["bytes"]:
        return f"has {found} bytes, expected {expected['bytes']}"
    crc = f"{crc32c_of([path.read_bytes()]):08x}"
    return None if crc == expected["crc32c"] else f"has crc32c {crc}, expected {expected['crc32c']}"


def _sample(geometry: Geometry, bad: set[int], sample: int, seed: int) -> list[int]:
    good = [chunk for chunk in range(geometry.n_chunks) if chunk // geometry.chunks not in bad]
    chosen = np.random.default_rng(seed).permutation(len(good))[:sample]
    return sorted(good[i] for i in chosen)


def _check_values(reader: SplitReader, chunks: Sequence[int], regenerate: Regenerate) -> list[Fault]:
    faults = []
    for chunk in chunks:
        made = regenerate(reader.split, np.arange(*reader.geometry.chunk_range(chunk), dtype=np.int64))
        shard = chunk // reader.geometry.chunks
        for spec in reader.specs:
            stored = reader.chunk(chunk)[spec.name]
            again = np.asarray(made[spec.name], spec.dtype)
            if stored.tobytes() != again.tobytes():
                rows = np.flatnonzero((stored != again).reshape(len(stored), -1).any(axis=1))
                at = f" (first at trajectory {chunk * reader.chunk_rows + int(rows[0])})" if len(rows) else ""
                path = shard_file(reader.dataset, reader.split, spec, shard)
                faults.append(Fault(path, f"chunk {chunk} differs from its regeneration{at}", reader.split, shard))
    return faults
