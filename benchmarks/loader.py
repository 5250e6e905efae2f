"""Shuffled trajectories per second of one process: the loader against what a user would take instead, in one run.

Trajectories of Experiment 1 in a store in the directory for temporary files, page cache warm. The loader reads the
store and regenerates the action sets; torch's TensorDataset holds the same arrays, with the action sets, in memory;
the zarr reader draws the rows of each batch at random through zarr-python, without action sets.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.clock import in_turn
from data_gen.generate import generate
from icrl.config import Config, DatasetConfig, override
from icrl.source import open_source
from train.dataset import TrajectoryStream, batches_in_order

BATCHES = (128, 256, 512)
FLOOR = 1e6
"""Fewest trajectories per CPU second of the loader at every batch size that count as a success."""
RATIO_FLOORS = {"over_torch": 1.0, "over_zarr": 100.0}
"""Smallest ratios over the others, at batch 256, in CPU time, that count as a success."""


def run(quick: bool) -> dict[str, Any]:  # noqa: FBT001 - the signature of every benchmark
    """`per_second` of each contestant in wall and CPU time, `ratios`, and whether the floors are met.

    Raises ValueError where two contestants serve different trajectories: then the times would not be comparable.
    """
    repeats, n = (3, 65_536) if quick else (5, 262_144)
    with tempfile.TemporaryDirectory(prefix="icrl-loader-") as folder:
        config = Config(dataset=DatasetConfig(path=folder, train=n, validation=1, test=0, actors=0))
        generate(config)
        contestants = _contestants(config, n)
        for contestant in contestants.values():
            contestant.serve()  # compiles, and maps the shards
        times = in_turn({name: contestant.serve for name, contestant in contestants.items()}, repeats)
    counts = {name: contestant.trajectories for name, contestant in contestants.items()}
    rates = {name: {"wall": counts[name] / t.wall_s, "cpu": counts[name] / t.cpu_s} for name, t in times.items()}
    ratios = {
        "over_torch": rates["stream_256"]["cpu"] / rates["torch_256"]["cpu"],
        "over_zarr": rates["stream_256"]["cpu"] / rates["zarr_rows_256"]["cpu"],
    }
    return {
        "trajectories": n,
        "per_second": rates,
        "ratios": ratios,
        "floors": {"stream": FLOOR} | RATIO_FLOORS,
        "passed": all(rates[f"stream_{batch}"]["cpu"] >= FLOOR for batch in BATCHES)
        and all(ratios[name] >= floor for name, floor in RATIO_FLOORS.items()),
    }


@dataclass(frozen=True)
class _Contestant:
    """Batches from the first on, and how many of them one measurement takes."""

    start: Callable[[], Iterator[object]]
    batch: int
    batches: int

    @property
    def trajectories(self) -> int:
        return self.batch * self.batches

    def serve(self) -> None:
        for _ in islice(self.start(), self.batches):
            pass


def _contestants(config: Config, n: int) -> dict[str, _Contestant]:
    stored = open_source(config, "train")
    virtual = open_source(override(config, ["dataset.source=virtual"]), "train")
    whole = next(batches_in_order(stored, config.environment, n))
    found: dict[str, _Contestant] = {}
    for size in BATCHES:
        stream = TrajectoryStream(stored, config.environment, global_batch=size, seed=0)
        _require_same(stream.batch(0), whole)
        found[f"stream_{size}"] = _Contestant(partial(map, stream.batch, count()), size, n // size)
    stream = TrajectoryStream(virtual, config.environment, global_batch=256, seed=0)
    _require_same(stream.batch(0), whole)
    found["virtual_256"] = _Contestant(partial(map, stream.batch, count()), 256, n // 256 // 4)
    names = ("action", "reward", "optimal_action", "source", "action_set")
    tensors = TensorDataset(*(torch.from_numpy(whole[name]) for name in names))
    for size in BATCHES:
        loader = DataLoader(tensors, batch_size=size, shuffle=True)
        found[f"torch_{size}"] = _Contestant(partial(iter, loader), size, n // size // 4)
    found["zarr_rows_256"] = _Contestant(partial(_zarr_rows, Path(str(config.dataset.path)), n, 256), 256, 2)
    return found


def _zarr_rows(dataset: Path, n: int, size: int) -> Iterator[dict[str, Any]]:
    group = zarr.open_group(dataset / "train.zarr", mode="r")
    stored: dict[str, Any] = {name: group[name] for name in ("action", "reward", "optimal_action", "source")}
    order = np.random.default_rng(0).permutation(n)
    for start in range(0, n, size):
        rows = order[start : start + size]
        yield {name: values.oindex[rows] for name, values in stored.items()}


def _require_same(batch: dict[str, Any], whole: dict[str, Any]) -> None:
    for name, values in batch.items():
        if not np.array_equal(values, whole[name][batch["index"]]):
            raise ValueError(f"{name}: the loader serves other values than the store holds")


def table(result: dict[str, Any]) -> str:
    """The result of `run` for a terminal."""
    lines = [f"{'shuffled trajectories/s':26}{'wall':>14}{'CPU':>14}"]
    lines += [f"{name:26}{r['wall']:14,.0f}{r['cpu']:14,.0f}" for name, r in result["per_second"].items()]
    lines.append(f"{'floor of the stream':26}{'':14}{result['floors']['stream']:14,.0f}")
    lines += [f"{name:26}{ratio:27,.1f}x (floor {result['floors'][name]}x)" for name, ratio in result["ratios"].items()]
    return "\n".join(lines)
