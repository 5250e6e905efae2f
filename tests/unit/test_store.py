"""The dataset on disk: layout, conformance with zarr-python, damage, refusals."""

import dataclasses
import json
import math
import warnings

import numpy as np
import pytest
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec
from zarr.core.buffer import default_buffer_prototype

from icrl.config import (
    Config,
    ContextComponent,
    DatasetConfig,
    ExpertConfig,
    LinearBanditConfig,
    ThompsonConfig,
    TrainConfig,
    UniformConfig,
    override,
)
from icrl.store import (
    SPLITS,
    ArraySpec,
    Geometry,
    SplitReader,
    arrays_for,
    dataset_path,
    dataset_recipe,
    geometry_for,
    initialise,
    missing,
    recipe_hash,
    verify,
    withdraw,
    write_shard,
)
from icrl.store.shard import crc32c_of, crc32c_of_encoded, encode_shard

ARRAYS = ("action", "reward", "optimal_action", "source", "theta", "action_set")


@pytest.fixture
def config(tmp_path):
    # 2100 = 8 shards of one inner chunk and one that is nearly empty; 700 and 0 are the other edges
    return Config(
        environment=LinearBanditConfig(dim=2, n_actions=3, horizon=10),
        dataset=DatasetConfig(
            path=str(tmp_path / "set"), train=2100, validation=700, test=0, materialise=("theta", "action_set")
        ),
        train=TrainConfig(global_batch=8),
    )


def synthetic(config, split, rows):
    """Any values will do here: a function of the split and the row."""
    environment = config.environment
    rows = np.asarray(rows, np.int64)
    noise = np.random.default_rng([SPLITS.index(split), 7]).random((5000, environment.horizon), np.float32)[rows]
    return {
        "action": (noise * environment.n_actions).astype(np.uint8),
        "reward": noise,
        "optimal_action": (rows % environment.n_actions).astype(np.uint8),
        "source": np.zeros(len(rows), np.uint8),
        "theta": noise[:, : environment.dim].copy(),
        "action_set": noise[:, :6].reshape(-1, 3, 2).copy(),
    }


def write(config, dataset, leave_out=()):
    dataset.mkdir(parents=True, exist_ok=True)
    initialise(dataset, config, {"commit": "abc"})
    specs = arrays_for(config)
    for split in SPLITS:
        geometry = geometry_for(specs, getattr(config.dataset, split))
        for shard in range(geometry.n_shards):
            if (split, shard) not in leave_out:
                arrays = synthetic(config, split, range(*geometry.shard_range(shard)))
                write_shard(dataset, split, shard, arrays, specs, geometry)
    return dataset


@pytest.fixture
def dataset(config):
    return write(config, dataset_path(config))


def test_zarr_python_reads_identical_values_and_names(config, dataset):
    for split in SPLITS:
        n = getattr(config.dataset, split)
        expected = synthetic(config, split, range(n))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            group = zarr.open_group(dataset / f"{split}.zarr", mode="r")
            assert sorted(name for name, _ in group.members()) == sorted(ARRAYS)
        assert group.attrs["recipe"] == dataset_recipe(config)
        assert group.attrs["provenance"] == {"commit": "abc"}
        for name in ARRAYS:
            np.testing.assert_array_equal(group[name][:], expected[name], strict=True)
        assert group["action_set"].metadata.dimension_names == ("trajectory", "action_index", "feature")


@pytest.mark.parametrize("n", [1, 256, 700, 1024, 1100])
def test_files_are_those_that_zarr_python_writes(config, tmp_path, n):
    """Several inner chunks a shard, ragged ends, and inner chunks and shards that are not there."""
    geometry = Geometry(n, chunk_rows=64, chunks=4)
    rows = synthetic(config, "train", range(n))
    group = zarr.open_group(tmp_path / "theirs.zarr", mode="w")
    ours = tmp_path / "ours"
    for spec in arrays_for(config):
        theirs = group.create_array(
            spec.name,
            shape=(n, *spec.row_shape),
            chunks=(geometry.chunk_rows, *spec.row_shape),
            shards=(geometry.shard_rows, *spec.row_shape),
            dtype=spec.dtype,
            fill_value=spec.fill,
            serializer=BytesCodec(endian=None if spec.dtype.itemsize == 1 else "little"),
            compressors=Crc32cCodec(),
            filters=(),
            chunk_key_encoding={"name": "default", "separator": "."},
            dimension_names=spec.dimensions,
            attributes={"description": spec.description, "units": spec.units},
        )
        theirs[:] = rows[spec.name]
        (ours / "train.zarr" / spec.name).mkdir(parents=True)
    (ours / "_commits" / "train").mkdir(parents=True)
    for shard in range(geometry.n_shards):
        start, stop = geometry.shard_range(shard)
        part = {name: values[start:stop] for name, values in rows.items()}
        written = write_shard(ours, "train", shard, part, arrays_for(config), geometry)
        assert written == sum(geometry.shard_bytes(spec, shard) for spec in arrays_for(config))
    for name in ARRAYS:
        files = {path.name: path.read_bytes() for path in (tmp_path / "theirs.zarr" / name).glob("c*")}
        assert files == {path.name: path.read_bytes() for path in (ours / "train.zarr" / name).iterdir()}
        assert len(files) == geometry.n_shards


def test_metadata_is_what_zarr_python_writes(config, dataset, tmp_path):
    for path in sorted(dataset.glob("train.zarr/*/zarr.json")):
        ours = json.loads(path.read_text())
        array = zarr.open_array(path.parent, mode="r")
        assert array.metadata.to_dict()["attributes"] == ours["attributes"]
        theirs = json.loads(array.metadata.to_buffer_dict(default_buffer_prototype())["zarr.json"].to_bytes())
        assert theirs == ours


def test_chunks_and_rows_return_what_was_written(config, dataset):
    reader = SplitReader(dataset, "train", dataset_recipe(config))
    assert (reader.n, reader.chunk_rows, reader.n_chunks) == (2100, 256, 9)
    for chunk in range(reader.n_chunks):
        expected = synthetic(config, "train", range(chunk * 256, min(chunk * 256 + 256, 2100)))
        found = reader.chunk(chunk)
        assert sorted(found) == sorted(ARRAYS)
        for name in ARRAYS:
            np.testing.assert_array_equal(found[name], expected[name], strict=True)
    for rows in (slice(0, 5), slice(250, 800), slice(2047, None), slice(7, 7)):
        expected = synthetic(config, "train", range(2100)[rows])
        for name, values in reader.rows(rows).items():
            np.testing.assert_array_equal(values, expected[name], strict=True)
    assert SplitReader(dataset, "test").n_chunks == 0


@pytest.mark.parametrize("n", [1, 300, 2000, 5000, 100_000, 1_000_000, 10_000_000])
@pytest.mark.parametrize("horizon", [5, 50, 200, 3000])
def test_geometry_covers_every_row_once_and_shares_the_work(n, horizon):
    specs = arrays_for(Config(environment=LinearBanditConfig(horizon=horizon)))
    geometry = geometry_for(specs, n)
    bounds = [geometry.shard_range(shard) for shard in range(geometry.n_shards)]
    assert [start for start, _ in bounds] == [0, *(stop for _, stop in bounds[:-1])]
    assert bounds[-1][1] == n
    assert 256 <= geometry.chunk_rows <= 4096
    assert math.log2(geometry.chunk_rows).is_integer()
    assert geometry.n_shards >= min(8, -(-n // 256))
    assert geometry.chunk_rows == 256 or geometry.chunk_rows * horizon * 4 <= 1.5 * 2**20


@pytest.mark.parametrize("damage", ["flipped", "truncated", "gone", "uncommitted"])
def test_damage_is_found_and_named(config, dataset, damage):
    path = dataset / "train.zarr" / "reward" / "c.3.0"
    match damage:
        case "flipped":
            data = bytearray(path.read_bytes())
            data[1000] ^= 1
            path.write_bytes(data)
        case "truncated":
            path.write_bytes(path.read_bytes()[:-10])
        case "gone":
            path.unlink()
        case "uncommitted":
            withdraw(dataset, "train", 3)
            path = dataset / "_commits" / "train" / "3.json"
    (fault,) = verify(dataset).faults
    assert (fault.path, fault.split, fault.shard) == (path, "train", 3)
    assert str(path) in str(fault)
    if damage != "flipped":  # a map does not check sums
        with pytest.raises(ValueError, match="1 of 9 shards are missing"):
            SplitReader(dataset, "train")
    geometry = geometry_for(arrays_for(config), 2100)
    withdraw(dataset, "train", 3)
    assert missing(dataset, "train", arrays_for(config), geometry) == [3]
    rows = synthetic(config, "train", range(*geometry.shard_range(3)))
    write_shard(dataset, "train", 3, rows, arrays_for(config), geometry)
    assert verify(dataset).faults == ()


def test_verify_regenerates_bit_for_bit(config, dataset):
    good = verify(dataset, lambda split, indices: synthetic(config, split, indices), sample=4)
    assert (good.faults, good.shards, good.chunks_regenerated) == ((), 9 + 3, 4 + 3)

    def other(split, indices):
        made = synthetic(config, split, indices)
        made["reward"] = np.where((indices == 300)[:, None], np.nextafter(made["reward"], 2), made["reward"])
        return made

    (fault,) = [fault for fault in verify(dataset, other, sample=9).faults if fault.split == "train"]
    assert fault.path == dataset / "train.zarr" / "reward" / "c.1.0"
    assert "chunk 1 differs from its regeneration (first at trajectory 300)" in fault.problem


def test_a_partial_dataset_is_refused_with_what_completes_it(config, tmp_path):
    dataset = write(config, tmp_path / "part", leave_out={("train", 0), ("train", 5)})
    with pytest.raises(ValueError, match=r"2 of 9 shards are missing .*python -m data_gen CONFIG"):
        SplitReader(dataset, "train")
    assert SplitReader(dataset, "validation").n == 700
    with pytest.raises(ValueError, match=r"nowhere holds no dataset: make it with `python -m data_gen CONFIG`"):
        SplitReader(tmp_path / "nowhere", "train")


def test_another_recipe_is_refused_with_the_difference(config, dataset):
    other = override(config, ["environment.dim=3", "context=[{algorithm: uniform}]", "dataset.seed=4"])
    for refuse in (
        lambda: SplitReader(dataset, "train", dataset_recipe(other)),
        lambda: initialise(dataset, other, {}),
    ):
        with pytest.raises(ValueError, match="another recipe") as caught:
            refuse()
        for line in ("environment.dim: 2 -> 3", "context[0].algorithm: linucb -> uniform", "seed: 0 -> 4"):
            assert line in str(caught.value)
    recipe = json.loads((dataset / "recipe.json").read_text())
    (dataset / "recipe.json").write_text(json.dumps(recipe | {"schema_version": 99}))
    with pytest.raises(ValueError, match="schema_version 99"):
        SplitReader(dataset, "train")


def test_a_directory_of_something_else_is_left_alone(config, tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match=r"is no dataset, yet holds thesis\.tex"):
        initialise(tmp_path, config, {})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_the_recipe_is_what_changes_bytes_and_nothing_else(config):
    recipe = recipe_hash(dataset_recipe(config))
    same = dataclasses.replace(config, expert=ExpertConfig("optimal"), name="other", seed=3)
    assert recipe_hash(dataset_recipe(same)) == recipe
    changed = [
        override(config, ["dataset.train=2101"]),
        override(config, ["dataset.seed=1"]),
        override(config, ["environment.noise_std=1.0"]),
        dataclasses.replace(config, context=(*config.context, ContextComponent(UniformConfig()))),
        dataclasses.replace(config, context=(ContextComponent(ThompsonConfig()),)),
    ]
    assert len({recipe, *(recipe_hash(dataset_recipe(other)) for other in changed)}) == len(changed) + 1


def test_the_default_place_names_the_recipe_and_lies_under_the_root(tmp_path):
    config = override(Config(), [f"storage.root={tmp_path}", "name=x"])
    assert dataset_path(config) == tmp_path / "data" / f"x-{recipe_hash(dataset_recipe(config))}"
    with pytest.raises(ValueError, match=r"storage\.root = 's3://bucket'"):
        dataset_path(override(config, ["storage.root=s3://bucket"]))


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 20, 32])
def test_the_sum_of_a_shard_is_put_together_from_those_of_its_chunks(rows):
    geometry = Geometry(32, 8, 4)
    rng = np.random.default_rng(rows)
    for spec in (
        ArraySpec("action", np.dtype("<u1"), (5,), ("trajectory", "round"), 255, ""),
        ArraySpec("reward", np.dtype("<f4"), (5,), ("trajectory", "round"), math.nan, ""),
        ArraySpec("source", np.dtype("<u1"), (), ("trajectory",), 255, ""),
    ):
        values = rng.integers(0, 255, (rows, *spec.row_shape)).astype(spec.dtype)
        buffers = encode_shard(values, spec, geometry)
        whole = b"".join(bytes(buffer) for buffer in buffers)
        assert crc32c_of_encoded(buffers) == crc32c_of(buffers) == crc32c_of([whole])
        buffers[0] = np.asarray(buffers[0]) + np.ones((), spec.dtype)
        assert crc32c_of_encoded(buffers) != crc32c_of(buffers), "it trusts the sums that are in the shard"
