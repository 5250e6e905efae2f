"""From a source to batches: an order that is a pure function of (seed, step), and each rank's slice of it.

The order of an epoch: inner chunks are permuted, 16 of them in a row make a window, and the trajectories of a window
are permuted. Consecutive runs of `global_batch` trajectories are the steps. What is left at the end of an epoch, fewer
than `global_batch`, is dropped; the next epoch's order leaves out others.

Shapes: B trajectories of a batch, T rounds, A actions, d dim.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

import icrl.envs
from icrl.config import EnvironmentConfig, GridWorldConfig, TabularMDPConfig
from icrl.source import Source
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
    return batch | {"action_set": icrl.envs.action_sets(environment, seed, split, batch["index"])}


@dataclass(frozen=True)
class _Window:
    """Consecutive positions of an epoch's order, from `first` on."""

    first: int
    chunks: Indices
    """Inner chunks, in the epoch's order."""
    order: Indices
    """order[i]: which row of the concatenated chunks stands at position first + i."""
    starts: list[int]
    """First row of each chunk in the concatenation, and the end."""
    trajectories: Indices
    """The trajectory of each row of the concatenation, counted from the epoch's first."""


class TrajectoryStream:
    """Batches for one rank, with random access by step: to resume is to go on at step k.

    The order of the global batches does not depend on `world_size`; rank r takes the r-th of `world_size` equal
    consecutive parts of each. A batch holds `index` int64[B], `action` uint8[B, T], `reward` float32[B, T],
    `optimal_action` uint8[B], `source` uint8[B] and `action_set` float32[B, A, d], B = global_batch / world_size, and
    what else was stored. Stepping on in order is fast, a jump costs one window.

    With `fresh` each epoch goes on at new trajectories: those of epoch e have the indices e n .. (e + 1) n - 1. With
    `prefetch` a thread gathers the next window while this one is used, up to the window of step `prefetch` - 1; the
    batches are the same.

    Raises:
        ValueError: if the dataset has fewer trajectories than a batch, or the batch cannot be divided over the ranks.
    """

    def __init__(
        self,
        source: Source,
        environment: EnvironmentConfig,
        *,
        global_batch: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        fresh: bool = False,
        prefetch: int = 0,
    ) -> None:
        if global_batch % world_size:
            raise ValueError(f"global_batch {global_batch}: expected a multiple of the {world_size} workers")
        if source.n < global_batch:
            raise ValueError(f"global_batch {global_batch}: expected at most the dataset's {source.n} trajectories")
        assert 0 <= rank < world_size, (rank, world_size)
        self._source = source
        self._environment = environment
        self._data_seed: int = source.recipe["seed"]
        self._split = Split[source.split.upper()]
        self._global_batch = global_batch
        self._seed = seed
        self._share = global_batch // world_size
        self._offset = rank * self._share
        self._fresh = fresh
        self._cache: OrderedDict[tuple[int, int], Batch] = OrderedDict()
        self._epoch_layout = lru_cache(maxsize=2)(self._lay_out_epoch)
        self._window = lru_cache(maxsize=_WINDOWS_KEPT + 1)(self._permute_window)
        self._prefetch = prefetch
        # one thread does all the gathering, so that the source is never read from two
        self._thread = ThreadPoolExecutor(1, "prefetch") if prefetch else None
        self._ahead: tuple[tuple[int, int], Future[Batch]] | None = None

    def close(self) -> None:
        """Stop gathering ahead."""
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)

    @property
    def steps_per_epoch(self) -> int:
        return self._source.n // self._global_batch

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
        if len(parts) == 1:
            return {name: values.copy() for name, values in parts[0].items()}
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def indices(self, step: int) -> Indices:
        """Trajectory indices of the whole global batch of a step, over all ranks: int64[global_batch]."""
        epoch, first = self._place(step)
        pieces = []
        for number, start, stop in self._pieces(epoch, first, first + self._global_batch):
            window = self._window(epoch, number)
            pieces.append(window.trajectories[window.order[start - window.first : stop - window.first]])
        return np.concatenate(pieces) + self._first_index(epoch)

    def _first_index(self, epoch: int) -> int:
        """Index of an epoch's first trajectory."""
        return epoch * self._source.n if self._fresh else 0

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
        chunks = permutation(self._seed, self._split, Stream.ORDER, self._source.geometry.n_chunks, key=epoch << 32)
        sizes = [stop - start for start, stop in map(self._source.geometry.chunk_range, chunks.tolist())]
        windows = [sum(sizes[i : i + WINDOW_CHUNKS]) for i in range(0, len(sizes), WINDOW_CHUNKS)]
        return chunks, list(accumulate(windows, initial=0))

    def _permute_window(self, epoch: int, number: int) -> _Window:
        chunks, firsts = self._epoch_layout(epoch)
        own = chunks[number * WINDOW_CHUNKS : (number + 1) * WINDOW_CHUNKS]
        parts = [np.arange(*self._source.geometry.chunk_range(chunk)) for chunk in own.tolist()]
        starts = list(accumulate(map(len, parts), initial=0))
        order = permutation(self._seed, self._split, Stream.ORDER, starts[-1], key=(epoch << 32) + number + 1)
        return _Window(firsts[number], own, order, starts, np.concatenate(parts))

    def _gathered(self, epoch: int, number: int) -> Batch:
        """This rank's rows of a window, in order."""
        key = (epoch, number)
        if key not in self._cache:
            while len(self._cache) >= _WINDOWS_KEPT:
                self._cache.popitem(last=False)
            self._cache[key] = self._gather(key) if self._thread is None else self._taken(self._thread, key)
        return self._cache[key]

    def _taken(self, thread: ThreadPoolExecutor, key: tuple[int, int]) -> Batch:
        """A window from the thread, which then begins the one after it."""
        if self._ahead is None or self._ahead[0] != key:  # the first window, or a jump
            if self._ahead is not None:
                self._ahead[1].cancel()
            self._ahead = (key, thread.submit(self._gather, key))
        found = self._ahead[1].result()
        self._ahead = None
        if (following := self._following(key)) is not None:
            self._ahead = (following, thread.submit(self._gather, following))
        return found

    def _following(self, key: tuple[int, int]) -> tuple[int, int] | None:
        """The window after this one, or None where it begins at or after step `prefetch`."""
        epoch, number = key
        used = self.steps_per_epoch * self._global_batch
        first = self._epoch_layout(epoch)[1][number + 1]
        if first >= used:  # what is left of the epoch is dropped
            epoch, number, first = epoch + 1, -1, 0
        position = epoch * used + first
        return (epoch, number + 1) if position < self._prefetch * self._global_batch else None

    def _gather(self, key: tuple[int, int]) -> Batch:
        epoch, window = key[0], self._window(*key)
        rows, whole = window.order, self._share == self._global_batch
        if not whole:
            within = (window.first + np.arange(len(rows))) % self._global_batch
            rows = rows[(within >= self._offset) & (within < self._offset + self._share)]
        batch: Batch = {"index": window.trajectories[rows] + self._first_index(epoch)}
        for spec in self._source.specs:
            batch[spec.name] = np.empty((len(rows), *spec.row_shape), spec.dtype)
        place = np.full(len(window.order), -1)
        place[rows] = np.arange(len(rows))
        numbers = window.chunks + (epoch * self._source.geometry.n_chunks if self._fresh else 0)
        self._source.will_need(numbers.tolist())
        # a chunk at a time: its pages are read in order, and its rows scattered to their places
        for number, (start, end) in zip(numbers.tolist(), pairwise(window.starts), strict=True):
            to = place[start:end]
            mine = None if whole else np.flatnonzero(to >= 0)
            to = to if mine is None else to[mine]
            if not len(to):
                continue
            for name, values in self._source.chunk(number, mine).items():
                _records(batch[name])[to] = _records(values)
        return with_action_set(batch, self._environment, self._data_seed, self._split)


def _records(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The rows of an array as single elements, which NumPy moves several times faster: a view [rows]."""
    if values.ndim == 1:
        return values
    size = math.prod(values.shape[1:])
    return values.reshape(len(values), size).view(np.dtype((np.void, size * values.itemsize)))[:, 0]


def batches_in_order(
    source: Source, environment: EnvironmentConfig, batch: int, *, limit: int | None = None
) -> Iterator[Batch]:
    """The trajectories of a split in the order of their index, `batch` at a time (the last may be smaller).

    The same arrays as `TrajectoryStream.batch`; at most `limit` trajectories.
    """
    n = source.n if limit is None else min(limit, source.n)
    for start in range(0, n, batch):
        stop = min(start + batch, n)
        rows = {"index": np.arange(start, stop, dtype=np.int64)} | source.rows(slice(start, stop))
        yield with_action_set(rows, environment, source.recipe["seed"], Split[source.split.upper()])
