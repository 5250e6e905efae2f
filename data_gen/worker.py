"""One shard: trajectories from the compiled rollout to a committed shard. A plain class; an actor wraps it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

import icrl.envs
import icrl.rollout
from data_gen.plan import ShardTask
from icrl.config import Config
from icrl.store import Place, arrays_for, dataset_recipe, geometry_for, write_shard
from icrl.streams import Split


@dataclass(frozen=True)
class ShardStats:
    """What writing one shard took, in bytes and seconds of wall time."""

    task: ShardTask
    bytes: int
    generate_s: float
    write_s: float
    node: str = ""
    """The Ray node it was written on."""


def stored_arrays(config: Config, split: str, indices: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[Any]]:
    """The arrays that a config stores for these trajectories: each [B, *row_shape] (`icrl.store.arrays_for`)."""
    key = Split[split.upper()]
    seed = config.dataset.seed
    batch = icrl.rollout.generate(config.environment, config.context, seed, key, indices)
    arrays = batch.arrays()
    if config.dataset.materialise:
        environments = icrl.envs.sample(config.environment, seed, key, indices)
        arrays |= {name: getattr(environments, name) for name in config.dataset.materialise}
    return arrays


class TrajectoryWorker:
    """Writes shards of one dataset. Has no state between shards, so a restarted worker is as good as a fresh one."""

    def __init__(self, config: Config, dataset: Place) -> None:
        self._config = config
        self._dataset = dataset
        self._specs = arrays_for(config)
        self._sizes: dict[str, int] = dataset_recipe(config)["sizes"]

    def ready(self) -> None:
        """Compile the rollout; an actor that has answered has its CPU and can be given shards."""
        stored_arrays(self._config, "train", np.arange(1, dtype=np.int64))

    def write(self, task: ShardTask) -> ShardStats:
        """Generate, write and commit one shard; doing it twice, or in two places at once, gives the same bytes."""
        started = time.perf_counter()
        arrays = stored_arrays(self._config, task.split, np.arange(task.start, task.stop, dtype=np.int64))
        generated = time.perf_counter()
        geometry = geometry_for(self._specs, self._sizes[task.split])
        size = write_shard(self._dataset, task.split, task.shard, arrays, self._specs, geometry)
        return ShardStats(task, size, generated - started, time.perf_counter() - generated)
