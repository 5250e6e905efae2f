"""Bring a dataset to completion: in this process, or with actors of a running Ray."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from data_gen.plan import ShardTask, plan
from data_gen.worker import IN_FLIGHT, ShardStats, TrajectoryWorker
from icrl.config import Config
from icrl.run_dir import environment
from icrl.store import Place, initialise, make_directory, require_free, sweep_partials, writing


class DiskFullError(OSError):
    """No space left, or a quota reached, in the middle of the work."""


_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


@dataclass(frozen=True)
class Progress:
    """How far a generation has come, after each shard."""

    shards: int
    shards_total: int
    trajectories: int
    trajectories_total: int
    bytes: int
    seconds: float


@dataclass(frozen=True)
class Summary:
    """What a generation wrote; nothing, if the dataset was complete."""

    dataset: Place
    shards_written: int
    trajectories_written: int
    bytes_written: int
    trajectories: int
    """All trajectories of the dataset."""
    bytes: int
    """Size of the whole dataset."""
    actors: int
    """Actors at work; 0: in this process."""
    generate_s: float
    """Time spent in rollouts, summed over actors."""
    write_s: float
    """Time spent writing, summed over actors."""
    cpu_s: float
    """CPU time of both, summed over actors."""
    peak_bytes: int
    """Most memory that a process which wrote shards has had resident; 0 if none was written."""
    seconds: float
    """Wall time."""
    shards_by_node: dict[str, int]
    """Shards that each Ray node wrote."""


def _silent(_: Progress) -> None:
    pass


def generate(config: Config, *, progress: Callable[[Progress], None] = _silent, patience: float = 0.0) -> Summary:
    """Write the missing shards of the dataset of a config; a complete dataset returns at once, without a lock.

    With `dataset.actors` 0 in this process; otherwise with actors of the Ray that this process is connected to, each
    with one CPU. An actor that dies is started again and its shard written again. A dataset on a disk is locked for as
    long as this runs, whatever was left by a killed run is swept, and the bytes do not depend on the number of actors.
    `patience` is how many seconds to wait for another process that generates the same dataset.

    Raises:
        ValueError: if the dataset is of another recipe, in use, or too large for its disk; if Ray is not running.
        DiskFullError: the disk filled up on the way.
    """
    started = time.perf_counter()
    found = plan(config)
    if found.complete:
        return _summary(config, [], 0, started)
    require_free(found.dataset, found.bytes_needed)
    make_directory(found.dataset)
    with disk_errors(found.dataset), writing(found.dataset, patience=patience):
        initialise(found.dataset, config, environment())
        sweep_partials(found.dataset)
        tasks = plan(config).tasks
        total = sum(task.trajectories for task in tasks)
        trajectories = size = 0
        actors = 0 if config.dataset.actors == 0 or not tasks else actor_count(config.dataset.actors, len(tasks))
        done: list[ShardStats] = []
        for stats in write_shards(config, found.dataset, tasks, actors):
            done.append(stats)
            trajectories += stats.task.trajectories
            size += stats.bytes
            progress(Progress(len(done), len(tasks), trajectories, total, size, time.perf_counter() - started))
        # an actor that was killed in the middle of a shard left a partial file, and its successor wrote another
        sweep_partials(found.dataset)
    return _summary(config, done, actors, started)


def _summary(config: Config, done: Sequence[ShardStats], actors: int, started: float) -> Summary:
    found = plan(config)
    return Summary(
        dataset=found.dataset,
        shards_written=len(done),
        trajectories_written=sum(stats.task.trajectories for stats in done),
        bytes_written=sum(stats.bytes for stats in done),
        trajectories=found.trajectories,
        bytes=found.bytes,
        actors=actors,
        generate_s=sum(stats.generate_s for stats in done),
        write_s=sum(stats.write_s for stats in done),
        cpu_s=sum(stats.cpu_s for stats in done),
        peak_bytes=max((stats.peak_bytes for stats in done), default=0),
        seconds=time.perf_counter() - started,
        shards_by_node=dict(Counter(stats.node for stats in done if stats.node)),
    )


def actor_count(asked: int | Literal["auto"], tasks: int) -> int:
    import ray

    if not ray.is_initialized():
        raise ValueError(f"dataset.actors = {asked!r} needs a running Ray: start one, or set dataset.actors=0")
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    cpus = max(1, int(resources.get("CPU", 0)))
    return min(cpus if asked == "auto" else asked, cpus, tasks)


@contextlib.contextmanager
def disk_errors(dataset: Place) -> Iterator[None]:
    """A full disk, in this process or in an actor, ends the work with one clear message.

    Raises:
        DiskFullError: what is committed stays, and the same command goes on.
    """
    try:
        yield
    except OSError as error:
        cause = getattr(error, "cause", error)  # Ray's own error wraps an actor's
        if cause.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise DiskFullError(
            f"{dataset}: {os.strerror(cause.errno)}. What is committed is whole and stays; free some space, and the "
            "same command goes on from there"
        ) from None


def write_shards(config: Config, dataset: Place, tasks: Sequence[ShardTask], actors: int) -> Iterator[ShardStats]:
    """Write shards in this process (0 actors) or with actors, and yield each as it is committed."""
    if actors == 0:
        yield from TrajectoryWorker(config, dataset).write_all(tasks)
    else:
        yield from _written_by_actors(config, dataset, tasks, actors)


class TrajectoryActor(TrajectoryWorker):
    """The worker as an actor: it knows its node."""

    def write(self, task: ShardTask) -> ShardStats:
        import ray

        return replace(super().write(task), node=ray.get_runtime_context().get_node_id())


def _written_by_actors(config: Config, dataset: Place, tasks: Sequence[ShardTask], actors: int) -> Iterator[ShardStats]:
    """Hand out shards to actors that are up: at most `IN_FLIGHT` are in the hands of each."""
    import ray

    actor_class: Any = ray.remote  # its stubs do not know max_concurrency
    remote = actor_class(
        num_cpus=1,
        max_concurrency=IN_FLIGHT,
        # over all nodes, and never inside the reservation of a sweep's trial, which has no CPU to give
        scheduling_strategy="SPREAD",
        max_restarts=-1,
        max_task_retries=-1,
        runtime_env={"env_vars": dict.fromkeys(_THREADS, "1")},
    )(TrajectoryActor)
    # an actor whose CPU is still taken by others holds no shard, so it delays none; without a handle left it is ended
    in_flight = {actor.ready.remote(): actor for actor in [remote.remote(config, dataset) for _ in range(actors)]}
    waiting = deque(tasks)
    left = len(tasks)
    while left:
        (answer,), _ = ray.wait(list(in_flight), num_returns=1)
        actor = in_flight.pop(answer)
        try:
            stats = ray.get(answer)
        except ray.exceptions.RayTaskError as error:
            # a store or a disk that fails is no mistake in the code: its own line says it all
            if isinstance(error.cause, OSError):
                raise error.cause from None
            raise
        handed = 0
        # more than one only to an actor that begins, and not what others would lack
        while waiting and (handed == 0 or (stats is None and handed < IN_FLIGHT and len(waiting) > actors)):
            in_flight[actor.write.remote(waiting.popleft())] = actor
            handed += 1
        if stats is not None:
            left -= 1
            yield stats
        del actor  # a handle kept while waiting would keep the CPU of an actor that has nothing left to do
