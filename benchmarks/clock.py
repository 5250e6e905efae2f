"""Wall and CPU time of a piece of work, medians of some repetitions taken in turn with its rivals."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Times:
    """Medians, in seconds."""

    wall_s: float
    cpu_s: float
    """Of this process, all threads."""


def in_turn(contestants: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, Times]:
    """Medians of `repeats` runs of each; in turn, so that a busy moment of the machine meets all of them."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, work in contestants.items():
            wall, cpu = time.perf_counter(), time.process_time()
            work()
            taken[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {
        name: Times(statistics.median(wall for wall, _ in runs), statistics.median(cpu for _, cpu in runs))
        for name, runs in taken.items()
    }
