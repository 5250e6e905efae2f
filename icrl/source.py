"""Where trajectories come from: a stored dataset, or the rollout itself; one interface, the same bytes.

A *virtual* source computes what is asked for from (config, seed, split, index). It writes nothing, and it has no end:
epochs may go on at new indices instead of meeting the same trajectories again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

import icrl.envs
import icrl.rollout
from icrl.config import Config
from icrl.store import (
    SPLITS,
    ArraySpec,
    Geometry,
    SplitReader,
    arrays_for,
    dataset_path,
    dataset_recipe,
    geometry_for,
)
from icrl.streams import Split

Arrays = dict[str, npt.NDArray[Any]]
Indices = npt.NDArray[np.int64]


class Source(Protocol):
    """One split of a dataset: `n` trajectories in the inner chunks of `geometry`; `icrl.store.SplitReader` is one."""

    @property
    def split(self) -> str:
        """train, validation or test."""
        ...

    @property
    def recipe(self) -> dict[str, Any]:
        """What decides the bytes (`icrl.store.dataset_recipe`)."""
        ...

    @property
    def specs(self) -> tuple[ArraySpec, ...]:
        """The arrays there are."""
        ...

    @property
    def geometry(self) -> Geometry:
        """The cut into inner chunks."""
        ...

    @property
    def n(self) -> int:
        """Trajectories of the split."""
        ...

    def will_need(self, chunks: Sequence[int]) -> None:
        """Say which inner chunks are read next, in their order."""
        ...

    def chunk(self, chunk: int, rows: Indices | None = None) -> Arrays:
        """One inner chunk of every array, or these rows of it (counted from its first): [rows, *row_shape].

        What is returned may be read-only.
        """
        ...

    def rows(self, rows: slice) -> Arrays:
        """Consecutive trajectories of every array: [rows, *row_shape]."""
        ...


class VirtualSource:
    """A split that is computed when it is asked for.

    Chunks do not end with the split: number geometry.n_chunks e + c is chunk c of epoch e, whose trajectories are the
    indices e n .. (e + 1) n - 1. Quick where the rollout is compiled (`icrl.rollout.compiled`).
    """

    def __init__(self, config: Config, split: str) -> None:
        if split not in SPLITS:
            raise ValueError(f"split {split!r}: expected one of {', '.join(SPLITS)}")
        self.split = split
        self.recipe = dataset_recipe(config)
        self.specs = arrays_for(config)
        self.geometry = geometry_for(self.specs, self.recipe["sizes"][split])
        self._config = config

    @property
    def n(self) -> int:
        return self.geometry.n

    def will_need(self, chunks: Sequence[int]) -> None:
        pass

    def chunk(self, chunk: int, rows: Indices | None = None) -> Arrays:
        epoch, within = divmod(chunk, self.geometry.n_chunks)
        start, stop = self.geometry.chunk_range(within)
        inside = np.arange(stop - start) if rows is None else rows
        return self._arrays(epoch * self.geometry.n + start + inside)

    def rows(self, rows: slice) -> Arrays:
        start, stop, step = rows.indices(self.geometry.n)
        assert step == 1, "rows are consecutive"
        return self._arrays(np.arange(start, max(start, stop)))

    def _arrays(self, indices: Indices) -> Arrays:
        return stored_arrays(self._config, self.split, indices)


def open_source(config: Config, split: str) -> Source:
    """A split of the config's dataset, as `dataset.source` says.

    Raises:
        ValueError: the stored dataset is missing, half-written, or of another recipe; the message says what to do.
    """
    if config.dataset.source == "virtual":
        return VirtualSource(config, split)
    return SplitReader(dataset_path(config), split, dataset_recipe(config))


def stored_arrays(config: Config, split: str, indices: Indices) -> Arrays:
    """The arrays that a config stores for these trajectories: each [B, *row_shape] (`icrl.store.arrays_for`)."""
    key = Split[split.upper()]
    seed = config.dataset.seed
    batch = icrl.rollout.generate(config.environment, config.context, seed, key, indices)
    arrays = batch.arrays()
    if config.dataset.materialise:
        environments = icrl.envs.sample(config.environment, seed, key, indices)
        arrays |= {name: getattr(environments, name) for name in config.dataset.materialise}
    return arrays
