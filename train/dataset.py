"""From a dataset to batches: an order that is a pure function of (seed, step), and each rank's slice of it.

The order of an epoch: inner chunks are permuted, 16 of them in a row make a window, and the trajectories of a window
are permuted. Consecutive runs of `global_batch` trajectories are the steps. What is left at the end of an epoch, fewer
than `global_batch`, is dropped; the next epoch's order leaves out others.

Shapes: B trajectories of a batch, T rounds, A actions, d dim.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

import icrl.envs
from icrl.config import EnvironmentConfig, GridWorldConfig, TabularMDPConfig
from icrl.store import SplitReader
from icrl.streams import Split, Stream, permutation

Batch = dict[str, npt.NDArray[Any]]
Indices = npt.NDArray[np.int64]

WINDOW_CHUNKS = 16
"""Inner chunks that are shuffled together; the trajectories are i.i.d. in their index, so this only parts epochs."""

_WINDOWS_KEPT = 2
"""A batch may reach from one window into the next."""


def with_action_set(batch: Batch, environment: EnvironmentConfig, seed: int, split: Split) -> Batch:
    """The batch with a bandit's `action_set` float32[B, A, d], regenerated from (seed, split, index) unless stored."""
    if "action_set" in batch or isinstance(environment, TabularMDPConfig | GridWorldConfig):
        return batch
    return batch | {"action_set": icrl.envs.sample(environment, seed, split, batch["index"]).action_set}


@dataclass(frozen=True)
class _Window:
    """Consecutive positions of an epoch's order, from `first` on."""

    first: int
    chunks: Indices
    """Inner chunks, in the epoch's order."""
    order: Indices
    """order[i]: which row of the concatenated chunks stands at position first + i."""
    starts: Indices
    """First row of each chunk in the concatenation."""
    bases: Indices
    """First trajectory of each chunk."""


class TrajectoryStream:
    """Batches for one rank, with random access by step: to resume is to go on at step k.

    The order of the global batches does not depend on `world_size`; rank r takes the r-th of `world_size` equal
    consecutive parts of each. A batch holds `index` int64[B], `action` uint8[B, T], `reward` float32[B, T],
    `optimal_action` uint8[B], `source` uint8[B] and `action_set` float32[B, A, d], B = global_batch / world_size, and
    what else was stored. Stepping on in order is fast, a jump costs one window.

    Raises:
        ValueError: if the dataset has fewer trajectories than a batch, or the batch cannot be divided over the ranks.
    """

    def __init__(
        self,
        reader: SplitReader,
        environment: EnvironmentConfig,
        *,
        global_batch: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if global_batch % world_size:
            raise ValueError(f"global_batch {global_batch}: expected a multiple of the {world_size} workers")
        if reader.n < global_batch:
            raise ValueError(f"global_batch {global_batch}: expected at most the dataset's {reader.n} trajectories")
        assert 0 <= rank < world_size, (rank, world_size)
        self._reader = reader
        self._environment = environment
        self._data_seed: int = reader.recipe["seed"]
        self._split = Split[reader.split.upper()]
        self._global_batch = global_batch
        self._seed = seed
        self._share = global_batch // world_size
        self._offset = rank * self._share
        self._cache: OrderedDict[tuple[int, int], Batch] = OrderedDict()
        self._epoch_layout = lru_cache(maxsize=2)(self._lay_out_epoch)
        self._window = lru_cache(maxsize=_WINDOWS_KEPT)(self._permute_window)

    @property
    def steps_per_epoch(self) -> int:
        return self._reader.n // self._global_batch

    def batch(self, step: int) -> Batch:
        """This rank's part of the global batch of a step (step >= 0)."""
        epoch, first = self._place(step)
        first += self._offset
        parts = []
        for window, start, stop in self._pieces(epoch, first, first + self._share):
            mine = self._gathered(epoch, window)
            origin = self._own_before(self._window(epoch, window).first)
            at, until = self._own_before(start) - origin, self._own_before(stop) - origin
            parts.append({name: values[at:until] for name, values in mine.items()})
        # a copy even of one part: torch shares the memory that it is given, and the cache is not to be written to
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def indices(self, step: int) -> Indices:
        """Trajectory indices of the whole global batch of a step, over all ranks: int64[global_batch]."""
        epoch, first = self._place(step)
        pieces = []
        for number, start, stop in self._pieces(epoch, first, first + self._global_batch):
            window = self._window(epoch, number)
            rows = window.order[start - window.first : stop - window.first]
            chunk = np.searchsorted(window.starts, rows, side="right") - 1
            pieces.append(window.bases[chunk] + rows - window.starts[chunk])
        return np.concatenate(pieces)

    def _place(self, step: int) -> tuple[int, int]:
        epoch, within = divmod(step, self.steps_per_epoch)
        return epoch, within * self._global_batch

    def _own_before(self, position: int) -> int:
        """How many of the positions before this one are this rank's."""
        batches, within = divmod(position, self._global_batch)
        return batches * self._share + min(max(within - self._offset, 0), self._share)

    def _pieces(self, epoch: int, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """The windows that the positions start to stop - 1 lie in, each with its part of them."""
        firsts = self._epoch_layout(epoch)[1]
        window = bisect_right(firsts, start) - 1
        while start < stop:
            end = min(stop, firsts[window + 1])
            yield window, start, end
            start, window = end, window + 1

    def _lay_out_epoch(self, epoch: int) -> tuple[Indices, list[int]]:
        """The chunks in the epoch's order, and the first position of each window (and the end)."""
        chunks = permutation(self._seed, self._split, Stream.ORDER, self._reader.n_chunks, key=epoch << 32)
        sizes = [stop - start for start, stop in map(self._reader.geometry.chunk_range, chunks.tolist())]
        windows = [sum(sizes[i : i + WINDOW_CHUNKS]) for i in range(0, len(sizes), WINDOW_CHUNKS)]
        return chunks, list(accumulate(windows, initial=0))

    def _permute_window(self, epoch: int, number: int) -> _Window:
        chunks, firsts = self._epoch_layout(epoch)
        own = chunks[number * WINDOW_CHUNKS : (number + 1) * WINDOW_CHUNKS]
        ranges = np.array([self._reader.geometry.chunk_range(chunk) for chunk in own.tolist()], np.int64)
        sizes = ranges[:, 1] - ranges[:, 0]
        size = int(sizes.sum())
        order = permutation(self._seed, self._split, Stream.ORDER, size, key=(epoch << 32) + number + 1)
        return _Window(firsts[number], own, order, np.cumsum(sizes) - sizes, ranges[:, 0])

    def _gathered(self, epoch: int, number: int) -> Batch:
        """This rank's rows of a window, in order."""
        key = (epoch, number)
        if key not in self._cache:
            while len(self._cache) >= _WINDOWS_KEPT:
                self._cache.popitem(last=False)
            self._cache[key] = self._gather(self._window(epoch, number))
        return self._cache[key]

    def _gather(self, window: _Window) -> Batch:
        within = (window.first + np.arange(len(window.order))) % self._global_batch
        rows = window.order[(within >= self._offset) & (within < self._offset + self._share)]
        chunk = np.searchsorted(window.starts, rows, side="right") - 1
        batch: Batch = {"index": window.bases[chunk] + rows - window.starts[chunk]}
        for spec in self._reader.specs:
            batch[spec.name] = np.empty((len(rows), *spec.row_shape), spec.dtype)
        place = np.full(len(window.order), -1)
        place[rows] = np.arange(len(rows))
        self._reader.will_need(window.chunks.tolist())
        # a chunk at a time: its pages are read in order, and its rows scattered to their places
        for number, start in zip(window.chunks.tolist(), window.starts.tolist(), strict=True):
            arrays = self._reader.chunk(number)
            to = place[start : start + len(arrays["action"])]
            mine = slice(None) if len(rows) == len(place) else to >= 0
            for name, values in arrays.items():
                batch[name][to[mine]] = values[mine]
        return with_action_set(batch, self._environment, self._data_seed, self._split)


def batches_in_order(
    reader: SplitReader, environment: EnvironmentConfig, batch: int, *, limit: int | None = None
) -> Iterator[Batch]:
    """The trajectories of a split in the order of their index, `batch` at a time (the last may be smaller).

    The same arrays as `TrajectoryStream.batch`; at most `limit` trajectories.
    """
    n = reader.n if limit is None else min(limit, reader.n)
    for start in range(0, n, batch):
        stop = min(start + batch, n)
        rows = {"index": np.arange(start, stop, dtype=np.int64)} | reader.rows(slice(start, stop))
        yield with_action_set(rows, environment, reader.recipe["seed"], Split[reader.split.upper()])
