"""Reading a split, only what is committed: memory-mapped from a disk, by ranges from an object store.

The sum of an inner chunk is checked when a reader first touches it.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from icrl.store.commit import missing, read_recipe, record_file, shard_file, split_directory
from icrl.store.place import Place, folders, read_json, size
from icrl.store.ranges import RangeReader
from icrl.store.recipe import SPLITS, Recipe, require_same_recipe
from icrl.store.schema import ArraySpec, Geometry, parse_metadata
from icrl.store.shard import chunk_problem, map_shard

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
    a read-only view of the file. `check_sums` holds each inner chunk to its crc32c the first time it is read; a chunk
    that is damaged ends the reading with a ValueError that names it and the command that repairs it.

    Raises:
        ValueError: if there is no dataset at this place, it is of another recipe or schema (with the difference), or
            it is not complete (with how many shards are missing and the command that completes it).
    """

    def __init__(self, dataset: Place, split: str, recipe: Recipe | None = None, *, check_sums: bool = True) -> None:
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
        try:
            self.specs, self.geometry = read_layout(dataset, split)
        except ValueError as error:
            raise ValueError(f"{error}; {self._remedy}") from None
        if absent := missing(dataset, split, self.specs, self.geometry):
            raise ValueError(
                f"{split_directory(dataset, split)}: {len(absent)} of {self.geometry.n_shards} shards are missing "
                f"(the first is {absent[0]}{self._damaged(absent[0])}): complete it with `python -m data_gen CONFIG`, "
                f"or `python -m data_gen repair {dataset}`"
            )
        self._maps: OrderedDict[tuple[str, int], tuple[npt.NDArray[Any], npt.NDArray[np.uint32]]] = OrderedDict()
        self._checked = {spec.name: np.full(self.n_chunks, not check_sums) for spec in self.specs}
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

    def chunk(self, chunk: int, rows: npt.NDArray[np.int64] | None = None) -> Arrays:
        """One inner chunk of every array, as read-only views, or a copy of some of its rows: [rows, *row_shape].

        Raises:
            ValueError: a chunk does not have its crc32c; names the file and the remedy.
            OSError: the object store does not answer.
        """
        start, stop = self.geometry.chunk_range(chunk)
        if self._ranges is None:
            views = {spec.name: self._whole(spec, chunk)[: stop - start] for spec in self.specs}
        else:
            try:
                views = self._ranges.chunk(chunk)
            except ValueError as error:
                raise ValueError(f"{error}; {self._remedy}") from None
        return views if rows is None else {name: values[rows] for name, values in views.items()}

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

    def _whole(self, spec: ArraySpec, chunk: int) -> npt.NDArray[Any]:
        """An inner chunk with its filling, [chunk_rows, *row_shape], its sum checked."""
        shard, inside = divmod(chunk, self.geometry.chunks)
        values, sums = self._mapped(spec, shard)
        if not self._checked[spec.name][chunk]:
            if problem := chunk_problem(values[inside], sums[inside]):
                path = shard_file(self.dataset, self.split, spec, shard)
                raise ValueError(f"{path}: chunk {chunk} {problem}; {self._remedy}")
            self._checked[spec.name][chunk] = True
        whole: npt.NDArray[Any] = values[inside]
        return whole

    def _mapped(self, spec: ArraySpec, shard: int) -> tuple[npt.NDArray[Any], npt.NDArray[np.uint32]]:
        key = (spec.name, shard)
        if key in self._maps:
            self._maps.move_to_end(key)
            return self._maps[key]
        if len(self._maps) >= _MAPPED:
            self._maps.popitem(last=False)
        try:
            mapped = map_shard(self._file(spec, shard), spec, self.geometry, shard)
        except ValueError as error:
            raise ValueError(f"{error}; {self._remedy}") from None
        self._maps[key] = mapped
        return mapped

    def _file(self, spec: ArraySpec, shard: int) -> Place:
        return shard_file(self.dataset, self.split, spec, shard)

    @property
    def _remedy(self) -> str:
        return f"write it again with `python -m data_gen repair {self.dataset}`"

    def _damaged(self, shard: int) -> str:
        """The file that is not as it should be, of a shard that was committed once."""
        if not record_file(self.dataset, self.split, shard).exists():
            return ""
        for spec in self.specs:
            path, expected = self._file(spec, shard), self.geometry.shard_bytes(spec, shard)
            if (found := size(path)) == -1:
                return f": {path} is gone"
            if found != expected:
                return f": {path} has {found} bytes, expected {expected}"
        return ""
