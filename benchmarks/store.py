"""Writing and reading shards against the disk and the memory themselves, and against zarr-python, in one run.

Trajectories of Experiment 1, some 300 MB, in the directory for temporary files: TMPDIR chooses the disk. What is
written is fsynced but for zarr-python's, which does not do that; reading is from the page cache.
"""

from __future__ import annotations

import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from benchmarks.clock import in_turn
from data_gen.worker import IN_FLIGHT
from icrl.config import Config, DatasetConfig
from icrl.source import stored_arrays
from icrl.store import Geometry, SplitReader, arrays_for, geometry_for, initialise, write_shard

Arrays = dict[str, npt.NDArray[Any]]

FLOORS = {"write_over_dd": 0.6, "read_over_memcpy": 0.3, "write_over_zarr": 1.0, "read_over_zarr": 1.0}
"""Smallest ratios of rates, in wall time, that count as a success."""


def run(quick: bool) -> dict[str, Any]:  # noqa: FBT001 - the signature of every benchmark
    """`bytes_per_second` of each contestant, in wall and CPU time, `ratios`, and whether the `floors` are met.

    Raises ValueError where a reader returns other bytes than were written: then the times would not be comparable.
    """
    repeats, n = (3, 65_536) if quick else (5, 262_144)
    arrays = stored_arrays(Config(), "train", np.arange(n))
    with tempfile.TemporaryDirectory(prefix="icrl-store-") as folder:
        size = sum(values.nbytes for values in arrays.values())
        written = in_turn(_writers(arrays, n, Path(folder), size), repeats)
        read = in_turn(_readers(arrays, n, Path(folder)), repeats)
    rates = {
        name: {"wall": size / times.wall_s, "cpu": size / times.cpu_s if times.cpu_s else None}
        for name, times in (written | read).items()
    }
    rates["write_dd"]["cpu"] = None  # another process
    ratios = {
        "write_over_dd": written["write_dd"].wall_s / written["write_shards"].wall_s,
        "write_over_zarr": written["write_zarr"].wall_s / written["write_shards"].wall_s,
        "read_over_memcpy": read["read_memcpy"].wall_s / read["read_chunks"].wall_s,
        "read_over_zarr": read["read_zarr"].wall_s / read["read_chunks"].wall_s,
    }
    return {
        "bytes": size,
        "bytes_per_second": rates,
        "ratios": ratios,
        "floors": FLOORS,
        "passed": all(ratios[name] >= floor for name, floor in FLOORS.items()),
    }


def _dataset(folder: Path, n: int) -> Config:
    """An empty dataset for the trajectories."""
    config = Config(dataset=DatasetConfig(path=str(folder), train=n, validation=1, test=0))
    folder.mkdir()
    initialise(folder, config, {})
    return config


def _shards(arrays: Arrays, geometry: Geometry) -> list[Arrays]:
    ranges = [geometry.shard_range(shard) for shard in range(geometry.n_shards)]
    return [{name: values[start:stop] for name, values in arrays.items()} for start, stop in ranges]


def _writers(arrays: Arrays, n: int, folder: Path, size: int) -> dict[str, Any]:
    ours, theirs = folder / "ours", folder / "zarr"
    specs = arrays_for(_dataset(ours, n))
    _dataset(theirs, n)
    geometry = geometry_for(specs, n)
    shards = _shards(arrays, geometry)

    def write_shards() -> None:  # as two workers do, while each generates another shard
        with ThreadPoolExecutor(2 * (IN_FLIGHT - 1)) as threads:
            list(threads.map(lambda i: write_shard(ours, "train", i, shards[i], specs, geometry), range(len(shards))))

    def write_zarr() -> None:
        group = zarr.open_group(theirs / "train.zarr", mode="r+")
        for shard, rows in enumerate(shards):
            start, stop = geometry.shard_range(shard)
            for name, values in rows.items():
                target = group[name]
                assert isinstance(target, zarr.Array)
                target[start:stop] = values

    def write_dd() -> None:
        count = max(1, size >> 20)
        target = folder / "dd"
        command = ["dd", "if=/dev/zero", f"of={target}", "bs=1M", f"count={count}", "conv=fsync", "status=none"]
        subprocess.run(command, check=True)
        target.unlink()

    return {"write_shards": write_shards, "write_dd": write_dd, "write_zarr": write_zarr}


def _readers(arrays: Arrays, n: int, folder: Path) -> dict[str, Any]:
    """Every inner chunk once, in a shuffled order, copied into memory that is there already."""
    reader = SplitReader(folder / "ours", "train")
    order = np.random.default_rng(0).permutation(reader.n_chunks).tolist()
    buffers = {name: np.empty((reader.chunk_rows, *values.shape[1:]), values.dtype) for name, values in arrays.items()}
    group = zarr.open_group(folder / "zarr" / "train.zarr", mode="r")
    stored: dict[str, Any] = {name: group[name] for name in arrays}
    for chunk in (order[0], order[-1]):
        start, stop = reader.geometry.chunk_range(chunk)
        for name, values in reader.chunk(chunk).items():
            if not np.array_equal(values, arrays[name][start:stop]):
                raise ValueError(f"{name}: the reader returns other bytes than were written")
            if not np.array_equal(stored[name][start:stop], arrays[name][start:stop]):
                raise ValueError(f"{name}: zarr-python returns other bytes than were written")

    def read_chunks() -> None:
        for chunk in order:
            for name, values in reader.chunk(chunk).items():
                buffers[name][: len(values)] = values

    def read_memcpy() -> None:
        for chunk in order:
            start, stop = reader.geometry.chunk_range(chunk)
            for name, values in arrays.items():
                buffers[name][: stop - start] = values[start:stop]

    def read_zarr() -> None:
        for chunk in order:
            start, stop = reader.geometry.chunk_range(chunk)
            for name, values in stored.items():
                buffers[name][: stop - start] = values[start:stop]

    return {"read_chunks": read_chunks, "read_memcpy": read_memcpy, "read_zarr": read_zarr}


def table(result: dict[str, Any]) -> str:
    """The result of `run` for a terminal."""
    lines = [f"{result['bytes'] / 1e6:,.0f} MB, MB/s".ljust(26) + f"{'wall':>12}{'CPU':>12}"]
    for name, rate in result["bytes_per_second"].items():
        cpu = f"{rate['cpu'] / 1e6:12,.0f}" if rate["cpu"] else f"{'-':>12}"
        lines.append(f"{name:26}{rate['wall'] / 1e6:12,.0f}{cpu}")
    lines += [f"{name:26}{ratio:12.2f}x (floor {result['floors'][name]}x)" for name, ratio in result["ratios"].items()]
    return "\n".join(lines)
