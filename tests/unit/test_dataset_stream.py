"""The loader: its order is a function of (seed, step) alone, whatever the number of ranks."""

from pathlib import Path

import numpy as np
import pytest

import icrl.envs
from icrl.config import Config, DatasetConfig, LinearBanditConfig, TrainConfig, override
from icrl.store import SplitReader, arrays_for, geometry_for, initialise, write_shard
from icrl.streams import Split
from train.dataset import TrajectoryStream, batches_in_order

N = 9000
BATCH = 96
"""Neither divides a window (4096 rows) nor the epoch, so that batches reach over both edges."""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return Config(
        environment=LinearBanditConfig(dim=2, n_actions=3, horizon=4),
        dataset=DatasetConfig(path=str(tmp_path_factory.mktemp("set")), train=N, validation=300, test=0, seed=5),
        train=TrainConfig(global_batch=BATCH),
    )


def arrays_of(indices):
    """Each row's values spell its index."""
    digits = (indices[:, None] // 10 ** np.arange(4)) % 10
    return {
        "action": digits.astype(np.uint8),
        "reward": (indices[:, None] + np.zeros(4)).astype(np.float32),
        "optimal_action": (indices % 3).astype(np.uint8),
        "source": (indices % 2).astype(np.uint8),
    }


@pytest.fixture(scope="module")
def reader(config):
    return _write(config)["train"]


def _write(config):
    dataset = Path(config.dataset.path)
    initialise(dataset, config, {})
    specs = arrays_for(config)
    for split, n in (("train", N), ("validation", 300)):
        geometry = geometry_for(specs, n)
        for shard in range(geometry.n_shards):
            indices = np.arange(*geometry.shard_range(shard), dtype=np.int64)
            arrays = arrays_of(indices)
            if config.dataset.materialise:
                arrays["action_set"] = -np.ones((len(indices), 3, 2), np.float32)
            write_shard(dataset, split, shard, arrays, specs, geometry)
    return {split: SplitReader(dataset, split) for split in ("train", "validation")}


def stream(config, reader, seed=1, rank=0, world_size=1):
    return TrajectoryStream(reader, config.environment, global_batch=BATCH, seed=seed, rank=rank, world_size=world_size)


def test_an_epoch_meets_every_trajectory_once_but_for_the_tail(config, reader):
    one = stream(config, reader)
    assert one.steps_per_epoch == N // BATCH == 93
    epochs = [np.concatenate([one.batch(step)["index"] for step in range(e * 93, (e + 1) * 93)]) for e in range(2)]
    for seen in epochs:
        assert len(np.unique(seen)) == len(seen) == 93 * BATCH
        assert seen.min() >= 0
        assert seen.max() < N
    assert not np.array_equal(*epochs)
    left_out = [set(range(N)) - set(seen.tolist()) for seen in epochs]
    assert left_out[0] != left_out[1]


def test_the_order_is_shuffled_within_and_between_windows(config, reader):
    order = np.concatenate([stream(config, reader).indices(step) for step in range(93)])
    first_window = order[: 4096 - 256]  # the short last chunk may be in it
    assert len(np.unique(first_window // reader.chunk_rows)) == 16
    # in a uniform order of a window, neighbours ascend half of the time and come from one chunk 1 time in 16
    ascending = np.mean(np.diff(first_window) > 0)
    same_chunk = np.mean(np.diff(first_window // reader.chunk_rows) == 0)
    assert abs(ascending - 1 / 2) < 6 * np.sqrt(1 / 12 / 4096)
    assert abs(same_chunk - 1 / 16) < 6 * np.sqrt(1 / 16 / 4096)


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_rows_belong_to_their_index_and_ranks_make_up_the_global_batch(config, reader, world_size):
    ranks = [stream(config, reader, rank=rank, world_size=world_size) for rank in range(world_size)]
    reference = stream(config, reader)
    for step in (0, 1, 42, 43, 92, 93, 300):
        parts = [rank.batch(step) for rank in ranks]
        index = np.concatenate([part["index"] for part in parts])
        np.testing.assert_array_equal(index, reference.indices(step))
        assert all(len(part["index"]) == BATCH // world_size for part in parts)
        for part in parts:
            for name, values in arrays_of(part["index"]).items():
                np.testing.assert_array_equal(part[name], values, strict=True)
            environments = icrl.envs.sample(config.environment, 5, Split.TRAIN, part["index"])
            np.testing.assert_array_equal(part["action_set"], environments.action_set, strict=True)


def test_resuming_at_a_step_continues_bit_for_bit(config, reader):
    unbroken = stream(config, reader, rank=1, world_size=2)
    history = [unbroken.batch(step) for step in range(130)]
    for start in (1, 43, 90, 129):
        resumed = stream(config, reader, rank=1, world_size=2)
        for step in range(start, min(start + 5, 130)):
            batch = resumed.batch(step)
            assert batch.keys() == history[step].keys()
            for name, values in batch.items():
                np.testing.assert_array_equal(values, history[step][name], strict=True)


def test_the_seed_decides_the_order(config, reader):
    same, other = stream(config, reader, seed=1), stream(config, reader, seed=2)
    np.testing.assert_array_equal(same.indices(7), stream(config, reader, seed=1).indices(7))
    assert not np.array_equal(same.indices(7), other.indices(7))


def test_writing_to_a_batch_does_not_reach_the_next(config, reader):
    one = stream(config, reader)
    one.batch(3)["reward"][:] = -1
    assert (one.batch(3)["reward"] >= 0).all()


def test_stored_action_sets_are_not_regenerated(config, tmp_path):
    stored = override(config, [f"dataset.path={tmp_path}", "dataset.materialise=[action_set]"])
    reader = _write(stored)["train"]
    assert (stream(stored, reader).batch(0)["action_set"] == -1).all()


def test_impossible_batches_are_refused(config, reader):
    with pytest.raises(ValueError, match="96: expected a multiple of the 5 workers"):
        stream(config, reader, world_size=5)
    with pytest.raises(ValueError, match="10000: expected at most the dataset's 9000 trajectories"):
        TrajectoryStream(reader, config.environment, global_batch=10000, seed=0)


def test_validation_goes_in_order(config, reader):
    batches = list(batches_in_order(reader, config.environment, 4000, limit=8001))
    assert [len(batch["index"]) for batch in batches] == [4000, 4000, 1]
    np.testing.assert_array_equal(np.concatenate([batch["index"] for batch in batches]), np.arange(8001))
    for name, values in arrays_of(batches[1]["index"]).items():
        np.testing.assert_array_equal(batches[1][name], values, strict=True)
    assert batches[2]["action_set"].shape == (1, 3, 2)
