"""Reading a split, only what is committed: memory-mapped from a disk, by ranges from an object store.

The sums of the shards are checked by `icrl.store.verify`, not on every read of a mapped file.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from icrl.store.commit import missing, read_recipe, shard_file, split_directory
from icrl.store.place import Place, folders, read_json
from icrl.store.ranges import RangeReader
from icrl.store.recipe import SPLITS, Recipe, require_same_recipe
from icrl.store.schema import ArraySpec, Geometry, parse_metadata
from icrl.store.shard import map_shard

Arrays = dict[str, npt.NDArray[Any]]

_MAPPED = 256
"""Most shard files mapped at once; each holds a file descriptor."""


def read_layout(dataset: Place, split: str) -> tuple[tuple[ArraySpec, ...], Geometry]:
    """The arrays of a split and their common grid, from the Zarr metadata alone.

    Raises:
        ValueError: if there is no such split, or it is not laid out as this store does.
    """
    group = split_directory(dataset, split)
    found = []
    for folder in folders(group):
        with contextlib.suppress(FileNotFoundError):
            found.append(parse_metadata(folder.name, read_json(folder / "zarr.json")))
    grids = {geometry for _, geometry in found}
    if len(grids) != 1:
        raise ValueError(f"{group} holds {len(found)} arrays on {len(grids)} grids: not a split of a dataset")
    return tuple(spec for spec, _ in found), grids.pop()


class SplitReader:
    """The rows of one split of a complete dataset.

    `n` trajectories in `n_chunks` inner chunks of `chunk_rows` rows (the last may be shorter). What is returned may be
    a read-only view of the file.

    Raises:
        ValueError: if there is no dataset at this place, it is of another recipe or schema (with the difference), or
            it is not complete (with how many shards are missing and the command that completes it).
    """

    def __init__(self, dataset: Place, split: str, recipe: Recipe | None = None) -> None:
        if split not in SPLITS:
            raise ValueError(f"split {split!r}: expected one of {', '.join(SPLITS)}")
        stored = read_recipe(dataset)
        if stored is None:
            raise ValueError(f"{dataset} holds no dataset: make it with `python -m data_gen CONFIG`")
        if recipe is not None:
            require_same_recipe(dataset, stored, recipe)
        if not (split_directory(dataset, split) / "zarr.json").exists():
            raise ValueError(f"{dataset} was never finished: complete it with `python -m data_gen CONFIG`")
        self.dataset = dataset
        self.split = split
        self.recipe = stored
        self.specs, self.geometry = read_layout(dataset, split)
        if absent := missing(dataset, split, self.specs, self.geometry):
            raise ValueError(
                f"{split_directory(dataset, split)}: {len(absent)} of {self.geometry.n_shards} shards are missing "
                f"(the first is {absent[0]}): complete it with `python -m data_gen CONFIG`"
            )
        self._maps: OrderedDict[tuple[str, int], npt.NDArray[Any]] = OrderedDict()
        self._ranges = None if isinstance(dataset, Path) else RangeReader(self._file, self.specs, self.geometry)

    @property
    def n(self) -> int:
        return self.geometry.n

    @property
    def chunk_rows(self) -> int:
        return self.geometry.chunk_rows

    @property
    def n_chunks(self) -> int:
        return self.geometry.n_chunks

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(spec.name for spec in self.specs)

    def will_need(self, chunks: Sequence[int]) -> None:
        """Say which inner chunks are read next, in their order: an object store is then asked for several at once."""
        if self._ranges is not None:
            self._ranges.will_need(chunks)

    def chunk(self, chunk: int) -> Arrays:
        """One inner chunk of every array, as read-only views: [rows, *row_shape].

        Raises:
            ValueError: a chunk from an object store does not have its crc32c.
            OSError: the object store does not answer.
        """
        if self._ranges is not None:
            return self._ranges.chunk(chunk)
        start, stop = self.geometry.chunk_range(chunk)
        shard, inside = divmod(chunk, self.geometry.chunks)
        return {spec.name: self._mapped(spec, shard)[inside, : stop - start] for spec in self.specs}

    def rows(self, rows: slice) -> Arrays:
        """Consecutive rows of every array, copied: [rows, *row_shape]."""
        start, stop, step = rows.indices(self.n)
        assert step == 1, "rows are consecutive"
        result = {spec.name: np.empty((max(stop - start, 0), *spec.row_shape), spec.dtype) for spec in self.specs}
        position = start
        if position < stop:
            self.will_need(range(position // self.chunk_rows, -(-stop // self.chunk_rows)))
        while position < stop:
            chunk = position // self.chunk_rows
            first, last = self.geometry.chunk_range(chunk)
            end = min(last, stop)
            for name, values in self.chunk(chunk).items():
                result[name][position - start : end - start] = values[position - first : end - first]
            position = end
        return result

    def _mapped(self, spec: ArraySpec, shard: int) -> npt.NDArray[Any]:
        key = (spec.name, shard)
        if key in self._maps:
            self._maps.move_to_end(key)
            return self._maps[key]
        if len(self._maps) >= _MAPPED:
            self._maps.popitem(last=False)
        path = self._file(spec, shard)
        assert isinstance(path, Path), path
        mapped = map_shard(path, spec, self.geometry, shard)
        self._maps[key] = mapped
        return mapped

    def _file(self, spec: ArraySpec, shard: int) -> Place:
        return shard_file(self.dataset, self.split, spec, shard)
