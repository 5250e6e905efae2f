"""Generation end to end: idempotent, and the same bytes whatever the number of actors and whichever of them die."""

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest

import data_gen.worker
import icrl.rollout
from data_gen.generate import generate
from data_gen.plan import plan
from data_gen.worker import IN_FLIGHT, TrajectoryWorker, stored_arrays
from icrl.config import (
    Config,
    ContextComponent,
    DatasetConfig,
    LinearBanditConfig,
    LinUCBConfig,
    TrainConfig,
    UniformConfig,
    override,
)
from icrl.files import locked
from icrl.store import SPLITS, SplitReader, dataset_path, dataset_recipe, verify, withdraw
from icrl.streams import Split

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def config(tmp_path):
    return Config(
        environment=LinearBanditConfig(dim=2, n_actions=3, horizon=10),
        context=(ContextComponent(LinUCBConfig(), 0.7), ContextComponent(UniformConfig(), 0.3)),
        dataset=DatasetConfig(path=str(tmp_path / "a"), train=2000, validation=300, test=200, actors=0),
        train=TrainConfig(global_batch=8),
    )


@pytest.fixture(scope="module")
def local_ray(tmp_path_factory):
    import ray

    # Ray's sockets need a short path
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as short:
        # Ray writes a token into the home directory unless told otherwise
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.delenv("RAY_ADDRESS", raising=False)
        ray.init(
            address="local",
            num_cpus=7,  # actors are as many as there are CPUs at most
            include_dashboard=False,
            object_store_memory=100_000_000,
            _temp_dir=short,
            log_to_driver=False,
        )
        yield ray
        ray.shutdown()


def tree(dataset):
    """File -> bytes; provenance may differ between two runs."""
    files = {str(p.relative_to(dataset)): p.read_bytes() for p in sorted(dataset.rglob("*")) if p.is_file()}
    for split in SPLITS:
        group = json.loads(files[f"{split}.zarr/zarr.json"])
        del group["attributes"]["provenance"]
        files[f"{split}.zarr/zarr.json"] = json.dumps(group)
    return files


def at(config, path, actors=0):
    return dataclasses.replace(config, dataset=dataclasses.replace(config.dataset, path=str(path), actors=actors))


def test_a_dataset_holds_the_rollouts_of_its_indices(config):
    seen = []
    summary = generate(config, progress=seen.append)
    assert (summary.shards_written, summary.trajectories_written, summary.actors) == (8 + 2 + 1, 2500, 0)
    assert [entry.shards for entry in seen] == list(range(1, 12))
    assert (seen[-1].trajectories, seen[-1].trajectories_total, seen[-1].bytes) == (2500, 2500, summary.bytes_written)
    assert summary.bytes == summary.bytes_written
    for split in SPLITS:
        reader = SplitReader(dataset_path(config), split, dataset_recipe(config))
        key = Split[split.upper()]
        whole = icrl.rollout.generate(config.environment, config.context, 0, key, np.arange(reader.n, dtype=np.int64))
        for name, values in reader.rows(slice(None)).items():
            np.testing.assert_array_equal(values, getattr(whole, name), strict=True)
    assert set(SplitReader(dataset_path(config), "train").rows(slice(None))["source"].tolist()) == {0, 1}
    assert verify(dataset_path(config), lambda split, indices: stored_arrays(config, split, indices)).faults == ()


def test_a_complete_dataset_returns_at_once_even_while_another_holds_it(config):
    generate(config)
    before = tree(dataset_path(config))
    with locked(dataset_path(config) / ".lock"):
        again = generate(config)
    assert (again.shards_written, again.trajectories) == (0, 2500)
    assert tree(dataset_path(config)) == before


def test_only_what_is_missing_is_written(config):
    generate(config)
    dataset = dataset_path(config)
    before = tree(dataset)
    withdraw(dataset, "train", 3)
    (dataset / "validation.zarr" / "source" / "c.1").unlink()
    (dataset / "train.zarr" / "action" / ".c.3.0.1-ab.partial").write_bytes(b"torn")
    found = plan(config)
    assert [(task.split, task.shard) for task in found.tasks] == [("train", 3), ("validation", 1)]
    assert 0 < found.bytes_needed < found.bytes
    summary = generate(config)
    assert (summary.shards_written, summary.bytes_written) == (2, found.bytes_needed)
    assert tree(dataset) == before


def test_two_generations_of_one_dataset_do_not_meet(config):
    dataset_path(config).mkdir()
    with locked(dataset_path(config) / ".lock"), pytest.raises(ValueError, match=f"in use by process {os.getpid()} "):
        generate(config)


def test_another_recipe_is_refused_with_the_difference(config):
    generate(config)
    before = tree(dataset_path(config))
    with pytest.raises(ValueError, match=r"environment\.horizon: 10 -> 11"):
        generate(override(config, ["environment.horizon=11"]))
    assert tree(dataset_path(config)) == before


def test_actors_without_ray_are_refused_with_the_remedy(config):
    with pytest.raises(ValueError, match=r"dataset\.actors = 2 needs a running Ray: .*dataset\.actors=0"):
        generate(at(config, dataset_path(config), actors=2))


def test_materialised_arrays_are_those_of_the_environment(config, tmp_path):
    wide = override(config, ["dataset.materialise=[theta, action_set]", f"dataset.path={tmp_path / 'b'}"])
    generate(wide)
    rows = SplitReader(dataset_path(wide), "train").rows(slice(500, 520))
    best = np.argmax(np.einsum("bad,bd->ba", rows["action_set"].astype(float), rows["theta"].astype(float)), axis=1)
    np.testing.assert_array_equal(best, rows["optimal_action"])


def test_a_shard_written_twice_is_the_same(config):
    generate(config)
    before = tree(dataset_path(config))
    worker = TrajectoryWorker(config, dataset_path(config))
    task = dataclasses.replace(plan(override(config, ["dataset.path=elsewhere"])).tasks[9])
    assert task.split == "validation"
    assert worker.write(task).task == task
    assert tree(dataset_path(config)) == before


def test_writing_overlaps_generation_and_no_more_than_a_few_shards_are_in_hand(config, monkeypatch):
    started, overlapped, finished = [], threading.Event(), []
    arrays, shard = data_gen.worker.stored_arrays, data_gen.worker.write_shard

    def generating(*args):
        made = arrays(*args)
        started.append(len(started) - len(finished) + 1)
        if len(started) == 2:
            overlapped.set()
        return made

    def writing(*args):
        # the first shard is on its way to the disk until the second has been generated
        assert overlapped.wait(30)
        size = shard(*args)
        finished.append(size)
        return size

    monkeypatch.setattr(data_gen.worker, "stored_arrays", generating)
    monkeypatch.setattr(data_gen.worker, "write_shard", writing)
    summary = generate(config)
    assert len(started) == len(finished) == summary.shards_written == 11
    assert 2 <= max(started) <= IN_FLIGHT
    assert summary.bytes_written == sum(finished)
    assert summary.cpu_s > 0
    assert verify(dataset_path(config), lambda split, indices: arrays(config, split, indices)).faults == ()


def test_an_error_while_writing_ends_the_generation_and_keeps_what_is_committed(config, monkeypatch):
    shard = data_gen.worker.write_shard

    def full(dataset, split, number, *args):
        if (split, number) == ("train", 4):
            raise OSError(errno.ENOSPC, "No space left on device")
        return shard(dataset, split, number, *args)

    monkeypatch.setattr(data_gen.worker, "write_shard", full)
    with pytest.raises(OSError, match="No space left"):
        generate(config)
    missing = [(task.split, task.shard) for task in plan(config).tasks]
    assert ("train", 4) in missing
    assert len(missing) >= 11 - 4 - IN_FLIGHT
    assert ("train", 3) not in missing
    monkeypatch.undo()
    assert generate(config).shards_written == len(missing)


def test_memory_does_not_grow_with_the_number_of_trajectories(tmp_path):
    program = "from data_gen.generate import generate; from icrl.config import load; import sys;"
    program += "print(generate(load('configs/paper/exp1.yaml', sys.argv[1:]).config).peak_bytes)"
    peaks = []
    for shards in (4, 32):
        words = (f"dataset.path={tmp_path / str(shards)}", f"dataset.train={shards * 16_384}", "dataset.actors=0")
        command = [sys.executable, "-c", program, *words, "dataset.validation=1", "dataset.test=0"]
        peaks.append(int(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout))
    # 28 shards more are 550 MB of arrays
    assert peaks[1] - peaks[0] < 2 * 20e6


@pytest.mark.ray
def test_bytes_do_not_depend_on_actors_nor_on_their_deaths(config, tmp_path, local_ray):
    generate(config)
    reference = tree(dataset_path(config))
    for actors in (1, 2, 7):
        summary = generate(at(config, tmp_path / f"actors-{actors}", actors))
        assert summary.actors == actors
        assert tree(tmp_path / f"actors-{actors}") == reference

    killed = []

    def kill_workers(progress):
        if progress.shards in (1, 5):
            for child in psutil.Process().children(recursive=True):
                if child.is_running() and child.name().startswith("ray::Traj"):
                    os.kill(child.pid, signal.SIGKILL)
                    killed.append(child.pid)

    summary = generate(at(config, tmp_path / "killed", 2), progress=kill_workers)
    assert len(killed) >= 2
    assert summary.shards_written == 11
    assert tree(tmp_path / "killed") == reference


@pytest.mark.ray
def test_an_error_in_an_actor_reaches_the_caller(config, tmp_path, local_ray):
    (tmp_path / "b").mkdir()
    broken = at(config, tmp_path / "b", 2)

    def full(progress):
        # a file where a directory should be: what the next shard meets is an OSError
        target = tmp_path / "b" / "test.zarr" / "action"
        if target.is_dir():
            target.rename(tmp_path / "moved")
            target.write_text("")

    with pytest.raises(OSError, match=r"test\.zarr/action"):
        generate(broken, progress=full)
    assert plan(broken).tasks
    with locked(tmp_path / "b" / ".lock"):
        pass
