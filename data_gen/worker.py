"""One shard: trajectories from the compiled rollout to a committed shard. A plain class; an actor wraps it."""

from __future__ import annotations

import resource
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from data_gen.plan import ShardTask
from icrl.config import Config
from icrl.source import stored_arrays
from icrl.store import Place, arrays_for, dataset_recipe, geometry_for, write_shard


@dataclass(frozen=True)
class ShardStats:
    """What writing one shard took, in bytes and seconds of wall time."""

    task: ShardTask
    bytes: int
    generate_s: float
    write_s: float
    cpu_s: float
    """CPU time, of generating and writing together."""
    peak_bytes: int
    """Most memory that the process which wrote it has had resident so far."""
    node: str = ""
    """The Ray node it was written on."""


IN_FLIGHT = 3
"""Shards that a worker has in hand at most: one is generated while the two before it are on their way to the disk."""


class TrajectoryWorker:
    """Writes shards of one dataset. Has no state between shards, so a restarted worker is as good as a fresh one.

    `write` may be called by IN_FLIGHT threads: one of them generates at a time, the others write or wait. Neither the
    rollout nor sums nor writing holds the GIL.
    """

    def __init__(self, config: Config, dataset: Place) -> None:
        self._config = config
        self._dataset = dataset
        self._specs = arrays_for(config)
        self._sizes: dict[str, int] = dataset_recipe(config)["sizes"]
        self._generating = threading.Lock()

    def ready(self) -> None:
        """Compile the rollout; an actor that has answered has its CPU and can be given shards."""
        stored_arrays(self._config, "train", np.arange(1, dtype=np.int64))

    def write(self, task: ShardTask) -> ShardStats:
        """Generate, write and commit one shard; doing it twice, or in two places at once, gives the same bytes."""
        cpu = time.thread_time()
        with self._generating:
            started = time.perf_counter()
            arrays = stored_arrays(self._config, task.split, np.arange(task.start, task.stop, dtype=np.int64))
            generated = time.perf_counter()
        geometry = geometry_for(self._specs, self._sizes[task.split])
        size = write_shard(self._dataset, task.split, task.shard, arrays, self._specs, geometry)
        return ShardStats(
            task,
            size,
            generated - started,
            time.perf_counter() - generated,
            time.thread_time() - cpu,
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        )

    def write_all(self, tasks: Iterable[ShardTask]) -> Iterator[ShardStats]:
        """The shards in this process, IN_FLIGHT of them at a time, reported in their order."""
        with ThreadPoolExecutor(IN_FLIGHT, "shard") as threads:
            written: deque[Future[ShardStats]] = deque()
            try:
                for task in tasks:
                    if len(written) == IN_FLIGHT:
                        yield written.popleft().result()
                    written.append(threads.submit(self.write, task))
                while written:
                    yield written.popleft().result()
            finally:
                threads.shutdown(wait=True, cancel_futures=True)
