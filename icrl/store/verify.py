"""Checking a dataset: its metadata, every sum, and a sample of chunks made again bit for bit.

Nothing is written and no lock is taken: a dataset that others read or write can be checked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from icrl.store.commit import read_record, record_file, shard_file
from icrl.store.place import Place, count_partials
from icrl.store.recipe import SPLITS
from icrl.store.recovery import Fault, metadata_faults, recover_recipe
from icrl.store.s3 import ObjectStoreError
from icrl.store.schema import ArraySpec, Geometry, arrays_for, geometry_for
from icrl.store.shard import chunk_problem, map_shard, shard_chunks

Regenerate = Callable[[str, npt.NDArray[np.int64]], Mapping[str, npt.NDArray[Any]]]
"""(split, indices) -> the stored arrays of these trajectories, made again."""

NOT_COMMITTED = "shard is not committed"


@dataclass(frozen=True)
class Verification:
    """What was checked and what was found."""

    shards: int
    """Of all splits."""
    bytes: int
    """Size of the shards whose sums are right."""
    chunks_regenerated: int
    faults: tuple[Fault, ...]
    partials: int
    """Partial files, left by writers that were killed or still at work; no data, and no fault."""


def verify(
    dataset: Place,
    regenerate: Regenerate | None = None,
    *,
    sample: int | None = 8,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Verification:
    """Check metadata, each shard's record, sizes and crc32c, then regenerate `sample` inner chunks of each split.

    `sample` None: all of them. Chunks of shards that already have a fault are left out of the sample, which is a
    function of `seed`. `progress` is told how many of the shards' sums are checked.

    Raises:
        ValueError: if there is no dataset at this place, its recipe is lost, or it is of another version.
    """
    recipe, config = recover_recipe(dataset)
    specs = arrays_for(config)
    grids = {split: geometry_for(specs, recipe["sizes"][split]) for split in SPLITS}
    total = sum(geometry.n_shards for geometry in grids.values())
    faults = metadata_faults(dataset, recipe, config)
    shards = size = chunks = 0
    for split, geometry in grids.items():
        bad = set()
        for shard in range(geometry.n_shards):
            found = _check_shard(dataset, split, shard, specs, geometry)
            faults += found
            bad |= {shard} if found else set()
            size += 0 if found else sum(geometry.shard_bytes(spec, shard) for spec in specs)
            shards += 1
            progress(shards, total)
        if regenerate is not None:
            sampled = _sample(geometry, bad, sample, seed)
            faults += _check_values(dataset, split, specs, geometry, sampled, regenerate)
            chunks += len(sampled)
    partials = count_partials(dataset)
    return Verification(shards, size, chunks, tuple(faults), partials)


def _check_shard(
    dataset: Place, split: str, shard: int, specs: tuple[ArraySpec, ...], geometry: Geometry
) -> list[Fault]:
    record_path = record_file(dataset, split, shard)
    start, stop = geometry.shard_range(shard)
    try:
        record = read_record(dataset, split, shard)
        if record is None:
            return [Fault(record_path, NOT_COMMITTED, split, shard)]
        if (record["shard"], record["rows"]) != (shard, stop - start):
            return [Fault(record_path, f"is not the record of {stop - start} rows of shard {shard}", split, shard)]
        known = {
            name: (entry["bytes"], [int(crc, 16) for crc in entry["crc32c"]])
            for name, entry in record["arrays"].items()
        }
    except ObjectStoreError:
        raise  # the whole store, not this shard
    except (OSError, ValueError) as error:
        return [Fault(record_path, str(error), split, shard)]
    except (KeyError, TypeError, AttributeError) as error:
        return [Fault(record_path, f"is not a commit record ({error!r})", split, shard)]
    faults = []
    for spec in specs:
        path = shard_file(dataset, split, spec, shard)
        problem, sums = _check_file(path, spec, geometry, shard)
        if problem:
            faults.append(Fault(path, problem, split, shard))
        elif known.get(spec.name) != (geometry.shard_bytes(spec, shard), sums):
            problem = f"does not agree with {path}, whose chunks are whole: one of the two is not of this shard"
            faults.append(Fault(record_path, problem, split, shard))
    return faults


def _check_file(path: Place, spec: ArraySpec, geometry: Geometry, shard: int) -> tuple[str | None, list[int]]:
    """What is wrong with a file in itself (its size, its index, a chunk), and the crc32c of its inner chunks."""
    try:
        # not mapped: a disk that cannot read a page would end the process
        values, sums = shard_chunks(np.frombuffer(path.read_bytes(), np.uint8), spec, geometry, shard)
    except FileNotFoundError:
        return "file is gone", []
    except ObjectStoreError:
        raise
    except OSError as error:
        return f"cannot be read: {error.strerror}", []
    except ValueError as error:
        return str(error), []
    problems = [(shard * geometry.chunks + i, chunk_problem(values[i], sums[i])) for i in range(len(values))]
    return "; ".join(f"chunk {chunk} {problem}" for chunk, problem in problems if problem) or None, sums.tolist()


def _sample(geometry: Geometry, bad: set[int], sample: int | None, seed: int) -> list[int]:
    good = [chunk for chunk in range(geometry.n_chunks) if chunk // geometry.chunks not in bad]
    if sample is None:
        return good
    chosen = np.random.default_rng(seed).permutation(len(good))[:sample]
    return sorted(good[i] for i in chosen)


def _check_values(
    dataset: Place,
    split: str,
    specs: tuple[ArraySpec, ...],
    geometry: Geometry,
    chunks: Sequence[int],
    regenerate: Regenerate,
) -> list[Fault]:
    faults = []
    for chunk in chunks:
        start, stop = geometry.chunk_range(chunk)
        made = regenerate(split, np.arange(start, stop, dtype=np.int64))
        shard, inside = divmod(chunk, geometry.chunks)
        for spec in specs:
            path = shard_file(dataset, split, spec, shard)
            stored = map_shard(path, spec, geometry, shard)[0][inside, : stop - start]
            again = np.asarray(made[spec.name], spec.dtype)
            if stored.tobytes() != again.tobytes():
                rows = np.flatnonzero((stored != again).reshape(len(stored), -1).any(axis=1))
                at = f" (first at trajectory {start + int(rows[0])})" if len(rows) else ""
                faults.append(Fault(path, f"chunk {chunk} differs from its regeneration{at}", split, shard))
    return faults
