"""From a config to the shards that are still to be written."""

from __future__ import annotations

from dataclasses import dataclass

from icrl.config import Config
from icrl.files import size_text
from icrl.store import (
    SPLITS,
    Place,
    arrays_for,
    dataset_path,
    dataset_recipe,
    geometry_for,
    initialised,
    missing,
    read_recipe,
    require_dataset_place,
    require_same_recipe,
    require_writable,
)


@dataclass(frozen=True)
class ShardTask:
    """One shard of one split: trajectories start to stop - 1."""

    split: str
    shard: int
    start: int
    stop: int

    @property
    def trajectories(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Plan:
    """What a dataset consists of and what of it is missing."""

    dataset: Place
    tasks: tuple[ShardTask, ...]
    """The missing shards, in the order of the splits."""
    shards: int
    """All shards of the dataset."""
    trajectories: int
    """All trajectories of the dataset."""
    bytes: int
    """Size of the whole dataset."""
    bytes_needed: int
    """Size of the missing shards."""

    complete: bool
    """Nothing is missing: neither shards nor metadata."""

    @property
    def virtual(self) -> bool:
        """Nothing is stored: trajectories are computed where they are asked for."""
        return self.shards == 0

    def describe(self) -> str:
        """What there is and what is missing, for people."""
        if self.virtual:
            return f"dataset         virtual: {self.trajectories:,} trajectories, computed when training asks for them"
        return "\n".join(
            [
                f"dataset         {self.dataset}",
                f"trajectories    {self.trajectories:,} in {self.shards} shards, {size_text(self.bytes)}",
                f"missing         {self.trajectories_missing:,} in {len(self.tasks)} shards",
            ]
        )

    @property
    def trajectories_missing(self) -> int:
        return sum(task.trajectories for task in self.tasks)


def plan(config: Config) -> Plan:
    """What there is to write, which is nothing for a virtual source; writes nothing.

    Raises:
        ValueError: if the place holds a dataset of another recipe (with the difference) or something else, or cannot be
            written to.
    """
    dataset = dataset_path(config)
    recipe = dataset_recipe(config)
    if config.dataset.source == "virtual":
        return Plan(dataset, (), 0, sum(recipe["sizes"].values()), 0, 0, complete=True)
    require_writable("dataset.path", dataset)
    require_dataset_place(dataset)
    stored = read_recipe(dataset)
    if stored is not None:
        require_same_recipe(dataset, stored, recipe)
    specs = arrays_for(config)
    tasks: list[ShardTask] = []
    shards = trajectories = size = needed = 0
    for split in SPLITS:
        geometry = geometry_for(specs, recipe["sizes"][split])
        sizes = [sum(geometry.shard_bytes(spec, shard) for spec in specs) for shard in range(geometry.n_shards)]
        absent = missing(dataset, split, specs, geometry)
        tasks += [ShardTask(split, shard, *geometry.shard_range(shard)) for shard in absent]
        shards += geometry.n_shards
        trajectories += geometry.n
        size += sum(sizes)
        needed += sum(sizes[shard] for shard in absent)
    complete = not tasks and initialised(dataset, specs)
    return Plan(dataset, tuple(tasks), shards, trajectories, size, needed, complete)
