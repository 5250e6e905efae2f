"""The arrays of a split, and how their rows are cut into chunks and shards.

A split is a Zarr v3 group of arrays that share axis 0 (the trajectory) and one grid on it: an inner chunk holds
`chunk_rows` trajectories, a shard `chunks` inner chunks. Nothing is cut on another axis.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from icrl.config import BanditConfig, Config, GridWorldConfig, LinearBanditConfig, TabularMDPConfig

CHUNK_BYTES = 1 << 20
"""Size of an inner chunk of the largest array: large enough that per-chunk costs vanish, small enough to shuffle."""
CHUNK_ROWS = (256, 4096)
"""Fewest and most rows of an inner chunk, both powers of two."""
CHUNKS = 16
"""Most inner chunks of a shard."""
SHARDS = 8
"""Shards that a split should have, where it is large enough, so that actors share the work."""

MISSING = 2**64 - 1
"""Offset and size of an inner chunk that is not there, in the index of a shard."""


@dataclass(frozen=True)
class ArraySpec:
    """One array of a split; `row_shape` is the shape of one trajectory's part."""

    name: str
    dtype: np.dtype[Any]
    row_shape: tuple[int, ...]
    dimensions: tuple[str, ...]
    fill: int | float
    description: str
    units: str = "1"

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.row_shape)

    def key(self, shard: int) -> str:
        """File name of a shard inside the array's directory; the separator '.' keeps them in one directory."""
        return ".".join(["c", str(shard), *("0" for _ in self.row_shape)])


def arrays_for(config: Config) -> tuple[ArraySpec, ...]:
    """The arrays that a config stores, in the order in which they are written."""
    environment = config.environment
    T = environment.horizon
    u1, f4 = np.dtype("<u1"), np.dtype("<f4")
    rounds = ("trajectory", "round")
    mdp = isinstance(environment, TabularMDPConfig | GridWorldConfig)
    every = mdp or (isinstance(environment, LinearBanditConfig) and environment.action_set == "fresh")
    best = ArraySpec("optimal_action", u1, (), ("trajectory",), 255, "action with the largest mean reward, an index")
    if every:
        best = ArraySpec("optimal_action", u1, (T,), rounds, 255, "best action of the round, an index")
    specs = [
        ArraySpec("action", u1, (T,), rounds, 255, "action of the context algorithm, an index"),
        ArraySpec("reward", f4, (T,), rounds, math.nan, "observed reward, with noise"),
        best,
        ArraySpec("source", u1, (), ("trajectory",), 255, "component of the context mixture that acted, an index"),
    ]
    if isinstance(environment, TabularMDPConfig | GridWorldConfig):
        H, S = environment.episode_length, environment.n_states
        specs.append(ArraySpec("state", u1, (T,), rounds, 255, "state before the action, an index"))
        names = ("trajectory", "step", "state_index")
        specs.append(ArraySpec("optimal_policy", u1, (H, S), names, 255, "best action in each state, an index"))
    else:
        specs += _materialised(config, environment)
    return tuple(specs)


def _materialised(config: Config, environment: BanditConfig) -> Iterator[ArraySpec]:
    A, d, f4 = environment.n_actions, environment.dim, np.dtype("<f4")
    if "theta" in config.dataset.materialise:
        yield ArraySpec("theta", f4, (d,), ("trajectory", "feature"), math.nan, "parameter w* of the environment")
    if "action_set" in config.dataset.materialise:
        names = ("trajectory", "action_index", "feature")
        yield ArraySpec("action_set", f4, (A, d), names, math.nan, "features of each action")
    if "means" in config.dataset.materialise:
        names_of_means = ("trajectory", "action_index")
        yield ArraySpec("means", f4, (A,), names_of_means, math.nan, "expected reward of each action")


@dataclass(frozen=True)
class Geometry:
    """How `n` rows are cut: shards of `chunks` inner chunks of `chunk_rows` rows; the last of each may be short."""

    n: int
    chunk_rows: int
    chunks: int

    @property
    def shard_rows(self) -> int:
        return self.chunk_rows * self.chunks

    @property
    def n_shards(self) -> int:
        return -(-self.n // self.shard_rows)

    @property
    def n_chunks(self) -> int:
        return -(-self.n // self.chunk_rows)

    def shard_range(self, shard: int) -> tuple[int, int]:
        """First row of a shard, and the row past its last."""
        return shard * self.shard_rows, min((shard + 1) * self.shard_rows, self.n)

    def chunk_range(self, chunk: int) -> tuple[int, int]:
        """First row of an inner chunk, and the row past its last."""
        return chunk * self.chunk_rows, min((chunk + 1) * self.chunk_rows, self.n)

    def shard_bytes(self, spec: ArraySpec, shard: int) -> int:
        """Size of the file of a shard: its inner chunks with their crc32c, the index, and the index's crc32c."""
        start, stop = self.shard_range(shard)
        present = -(-(stop - start) // self.chunk_rows)
        return present * (self.chunk_rows * spec.row_bytes + 4) + 16 * self.chunks + 4


def geometry_for(specs: tuple[ArraySpec, ...], n: int) -> Geometry:
    """The grid of a split of `n` trajectories, a function of `n` and the largest row alone."""
    fewest, most = CHUNK_ROWS
    rows = CHUNK_BYTES / max(spec.row_bytes for spec in specs)
    chunk_rows = min(max(2 ** round(math.log2(rows)), fewest), most)
    while chunk_rows > fewest and n < SHARDS * CHUNKS * chunk_rows:
        chunk_rows //= 2
    chunks = CHUNKS
    while chunks > 1 and n < SHARDS * chunks * chunk_rows:
        chunks //= 2
    return Geometry(n, chunk_rows, chunks)


def array_metadata(spec: ArraySpec, geometry: Geometry) -> dict[str, Any]:
    """`zarr.json` of an array: `sharding_indexed` with inner codecs [bytes, crc32c] and the index at the end."""
    crc32c: dict[str, Any] = {"name": "crc32c"}
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    single: dict[str, Any] = {"name": "bytes"}  # one byte has no order
    sharding = {
        "chunk_shape": [geometry.chunk_rows, *spec.row_shape],
        "codecs": [single if spec.dtype.itemsize == 1 else little, crc32c],
        "index_codecs": [little, crc32c],
        "index_location": "end",
    }
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [geometry.n, *spec.row_shape],
        "data_type": spec.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [geometry.shard_rows, *spec.row_shape]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": "NaN" if isinstance(spec.fill, float) else spec.fill,
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "dimension_names": list(spec.dimensions),
        "attributes": {"description": spec.description, "units": spec.units},
        "storage_transformers": [],
    }


def parse_metadata(name: str, metadata: dict[str, Any]) -> tuple[ArraySpec, Geometry]:
    """The spec and grid of an array from its `zarr.json`: the inverse of `array_metadata`.

    Raises:
        ValueError: if the array is cut or encoded in another way than this store's.
    """
    try:
        sharding = metadata["codecs"][0]["configuration"]
        chunk_rows = sharding["chunk_shape"][0]
        n, *row_shape = metadata["shape"]
        spec = ArraySpec(
            name,
            np.dtype(metadata["data_type"]).newbyteorder("<"),
            tuple(row_shape),
            tuple(metadata["dimension_names"]),
            math.nan if metadata["fill_value"] == "NaN" else metadata["fill_value"],
            metadata["attributes"]["description"],
            metadata["attributes"]["units"],
        )
        geometry = Geometry(n, chunk_rows, metadata["chunk_grid"]["configuration"]["chunk_shape"][0] // chunk_rows)
        known = array_metadata(spec, geometry) == metadata
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"array {name}: its zarr.json is not this store's ({error!r})") from error
    if not known:
        raise ValueError(f"array {name}: its zarr.json describes another layout or codecs than this store's")
    return spec, geometry
