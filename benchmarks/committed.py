"""Trajectories per second through Ray on 2 cores, on disk and committed with their sums; a part of `generation`.

Each repetition makes a whole dataset of Experiment 1 in the directory for temporary files: TMPDIR chooses the disk. The
sustained rate is from the first commit to the last; what starting actors costs is in the other.
"""

from __future__ import annotations

import statistics
import tempfile
from contextlib import nullcontext
from typing import Any

from data_gen.generate import Progress, generate
from data_gen.local_ray import local_ray
from icrl.config import Config, DatasetConfig

FLOOR = 150_000.0
"""Fewest trajectories per second of wall time, sustained, that count as a success."""
WAYS = {"through_ray": 2, "in_process": 0}
"""`dataset.actors`."""


def run(quick: bool) -> dict[str, Any]:  # noqa: FBT001 - the signature of every benchmark
    """`per_second` of each way, and whether the `floor` is met."""
    repeats, n = (3, 524_288) if quick else (5, 1_048_576)
    per_second: dict[str, dict[str, float]] = {}
    for name, actors in WAYS.items():
        with local_ray(at_least=2) if actors else nullcontext():
            runs = [_measure(actors, n) for _ in range(repeats)]
        per_second[name] = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    return {
        "trajectories": n,
        "per_second": per_second,
        "floor": FLOOR,
        "passed": all(rates["sustained"] >= FLOOR for rates in per_second.values()),
    }


def _measure(actors: int, n: int) -> dict[str, float]:
    seen: list[Progress] = []
    with tempfile.TemporaryDirectory(prefix="icrl-generation-") as folder:
        dataset = DatasetConfig(path=folder, train=n, validation=1, test=0, actors=actors)
        summary = generate(Config(dataset=dataset), progress=seen.append)
    first, last = seen[0], seen[-1]
    return {
        "sustained": (last.trajectories - first.trajectories) / (last.seconds - first.seconds),
        "with_start": summary.trajectories_written / summary.seconds,
        "per_cpu_second": summary.trajectories_written / summary.cpu_s,
        "write_megabytes": summary.bytes_written / summary.write_s / 1e6,
        "peak_megabytes": summary.peak_bytes / 1e6,
    }


def table(result: dict[str, Any]) -> str:
    """The result of `run` for a terminal."""
    lines = [f"{'written and committed':26}{'sustained/s':>14}{'with start/s':>14}{'a CPU second':>14}{'peak MB':>10}"]
    lines += [
        f"{name:26}{r['sustained']:14,.0f}{r['with_start']:14,.0f}{r['per_cpu_second']:14,.0f}{r['peak_megabytes']:10,.0f}"
        for name, r in result["per_second"].items()
    ]
    lines.append(f"{'floor':26}{result['floor']:14,.0f}")
    return "\n".join(lines)
