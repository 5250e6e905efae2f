"""Checking and repairing a dataset from its recipe alone: no config file is needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from data_gen.generate import actor_count, disk_errors, write_shards
from data_gen.plan import ShardTask
from icrl.config import Config
from icrl.run_dir import environment
from icrl.source import stored_arrays
from icrl.store import (
    CARD_FILE,
    Place,
    Verification,
    arrays_for,
    geometry_for,
    initialise,
    mend_metadata,
    recover_recipe,
    sweep_partials,
    verify,
    withdraw,
    writing,
)

Progress = Callable[[int, int], None]
"""(done, total)."""


@dataclass(frozen=True)
class Repair:
    """What was found, and what was done about it."""

    found: Verification
    mended: tuple[Place, ...]
    """Files of metadata that were written again."""
    shards: tuple[ShardTask, ...]
    """Shards that were generated again."""
    swept: int
    """Partial files that were removed."""


def check(dataset: Place, *, sample: int | None = 8, progress: Progress = lambda done, total: None) -> Verification:
    """`icrl.store.verify` with the generator of this version; writes nothing.

    Raises:
        ValueError: no dataset, or one of another version (with the difference).
    """
    _, config = recover_recipe(dataset)
    return verify(dataset, regenerator(config), sample=sample, progress=progress)


def regenerator(config: Config) -> Callable[[str, npt.NDArray[np.int64]], dict[str, npt.NDArray[Any]]]:
    """(split, indices) -> the arrays that the config stores, made again."""
    return lambda split, indices: stored_arrays(config, split, indices)


def repair(
    dataset: Place,
    *,
    sample: int | None = 8,
    actors: int | Literal["auto"] = 0,
    progress: Progress = lambda done, total: None,
) -> Repair:
    """Write again what `check` finds damaged, and what was never written; touch nothing else.

    Metadata comes from the recipe, shards from the generator, so all bytes are those of a dataset that was never
    damaged. `actors` 0 works in this process, otherwise with actors of the Ray that is running. A dataset on a disk is
    locked.

    Raises:
        ValueError: no dataset, one of another version, or one in use by another process.
        DiskFullError: the disk is full; the same command goes on.
    """
    recipe, config = recover_recipe(dataset)
    with disk_errors(dataset), writing(dataset):
        found = check(dataset, sample=sample)
        specs = arrays_for(config)
        tasks = []
        for split, shard in sorted({(f.split, f.shard) for f in found.faults if f.shard is not None and f.split}):
            geometry = geometry_for(specs, recipe["sizes"][split])
            tasks.append(ShardTask(split, shard, *geometry.shard_range(shard)))
        mended: list[Place] = mend_metadata(dataset, recipe, config, found.faults)
        if not (dataset / CARD_FILE).exists():
            mended.append(dataset / CARD_FILE)
        initialise(dataset, config, environment())
        for task in tasks:
            withdraw(dataset, task.split, task.shard)
        swept = sweep_partials(dataset)
        count = actor_count(actors, len(tasks)) if actors and tasks else 0
        for done, _ in enumerate(write_shards(config, dataset, tasks, count), start=1):
            progress(done, len(tasks))
        swept += sweep_partials(dataset)
    return Repair(found, tuple(mended), tuple(tasks), swept)
