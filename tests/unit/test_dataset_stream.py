"""The loader: its order is a function of (seed, step) alone, whatever the number of ranks."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import icrl.envs
from data_gen.generate import generate
from icrl.config import Config, DatasetConfig, LinearBanditConfig, TrainConfig, override
from icrl.source import open_source
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


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """By the number of trajectories: the same dataset stored and virtual, of one chunk, of several and of windows."""
    found = {}
    for n in (40, 300, 2_777, 9_000):
        config = Config(
            environment=LinearBanditConfig(dim=1, n_actions=2, horizon=2),
            dataset=DatasetConfig(path=str(tmp_path_factory.mktemp("n")), train=n, validation=1, test=0, actors=0),
            train=TrainConfig(global_batch=2),
        )
        generate(config)
        virtual = override(config, ["dataset.source=virtual"])
        found[n] = (config.environment, open_source(config, "train"), open_source(virtual, "train"))
    return found


@settings(deadline=None, max_examples=60)
@given(
    n=st.sampled_from([40, 300, 2_777, 9_000]),
    share=st.integers(1, 40),
    worlds=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    resume=st.integers(0, 400),
    steps=st.integers(1, 12),
    seed=st.integers(0, 2**63 - 1),
    fresh=st.booleans(),
    prefetch=st.booleans(),
)
def test_any_source_world_and_start_serve_one_order(sources, n, share, worlds, resume, steps, seed, fresh, prefetch):
    environment, stored, virtual = sources[n]
    unit = math.lcm(*worlds)
    if unit > n:
        unit, worlds = 1, (1, 1)
    batch = unit * min(share, n // unit)

    def stream(source, rank=0, world_size=1, prefetch=0, fresh=fresh):
        key = {"global_batch": batch, "seed": seed, "fresh": fresh, "prefetch": prefetch}
        return TrajectoryStream(source, environment, rank=rank, world_size=world_size, **key)

    reference = stream(virtual)
    ahead = resume + steps if prefetch else 0
    once = [stream(virtual, rank, worlds[0], ahead) for rank in range(worlds[0])]
    # the world changes in the middle, as after a restart with other workers; stored data cannot be fresh
    again = [stream(virtual if fresh else stored, rank, worlds[1], ahead) for rank in range(worlds[1])]
    for step in range(resume, resume + steps):
        ranks = once if step < resume + steps // 2 else again
        parts = [rank.batch(step) for rank in ranks]
        whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        index = reference.indices(step)
        np.testing.assert_array_equal(whole["index"], index)
        epoch = step // reference.steps_per_epoch
        assert len(np.unique(index)) == batch
        assert epoch * n * fresh <= index.min() <= index.max() < (epoch * fresh + 1) * n
        for name, values in stream(virtual).batch(step).items():
            np.testing.assert_array_equal(whole[name], values, strict=True)
        if not fresh:
            rows = {name: values[index] for name, values in stored.rows(slice(None)).items()}
            for name, values in rows.items():
                np.testing.assert_array_equal(whole[name], values, strict=True)
    for rank in (*once, *again):
        rank.close()


@pytest.mark.parametrize("fresh", [False, True])
def test_fresh_epochs_never_meet_a_trajectory_again(sources, fresh):
    environment, _, virtual = sources[2_777]
    stream = TrajectoryStream(virtual, environment, global_batch=32, seed=0, fresh=fresh)
    steps = stream.steps_per_epoch
    assert steps == 86
    epochs = [np.concatenate([stream.indices(e * steps + k) for k in range(steps)]) for e in range(4)]
    for epoch, seen in enumerate(epochs):
        assert len(np.unique(seen)) == 86 * 32
        assert (seen // 2_777 == epoch * fresh).all()
    seen = np.concatenate(epochs)
    assert len(np.unique(seen)) == (len(seen) if fresh else 2_777)


def test_windows_ahead_are_gathered_once_and_only_as_far_as_asked(sources, monkeypatch):
    environment, stored, _ = sources[9_000]
    asked = []
    chunk = stored.chunk
    monkeypatch.setattr(stored, "chunk", lambda number, rows=None: asked.append(number) or chunk(number, rows))
    stream = TrajectoryStream(stored, environment, global_batch=1000, seed=0, prefetch=12)
    for step in range(12):  # 9 steps an epoch; windows of 4096 rows end within steps 4 and 8
        stream.batch(step)
    stream.close()
    # an epoch has 36 chunks in 3 windows; the second epoch's first window holds steps 9 to 12
    assert len(asked) == 36 + 16


def test_what_goes_wrong_in_the_thread_reaches_the_caller(sources, monkeypatch):
    environment, stored, _ = sources[9_000]

    def torn(number, rows=None):
        raise OSError("the disk is gone")

    stream = TrajectoryStream(stored, environment, global_batch=4000, seed=0, prefetch=9)
    stream.batch(0)
    monkeypatch.setattr(stored, "chunk", torn)
    with pytest.raises(OSError, match="the disk is gone"):
        list(map(stream.batch, range(1, 9)))
    stream.close()
