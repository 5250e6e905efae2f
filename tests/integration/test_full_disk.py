"""A full disk, a limit on files, and two writers: clear messages, an intact dataset, and the same bytes after."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_gen.generate import DiskFullError, disk_errors, generate
from data_gen.plan import plan
from data_gen.repair import check, repair
from icrl.config import Config, DatasetConfig, LinearBanditConfig, TrainConfig, dump, override
from icrl.store import NOT_COMMITTED, SplitReader
from tests.dataset_tree import dataset_tree

ROOT = Path(__file__).resolve().parents[2]
CONFIG = Config(
    environment=LinearBanditConfig(dim=16, n_actions=16, horizon=100),
    dataset=DatasetConfig(train=30_000, validation=300, test=0, actors=0),
    train=TrainConfig(global_batch=8),
)
"""15 shards of 1 MB, each a tenth of a second's work."""
LARGEST = 2048 * 400
"""Bytes of the rewards of a shard, the largest file."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The dataset as it should be."""
    path = tmp_path_factory.mktemp("whole") / "set"
    generate(override(CONFIG, [f"dataset.path={path}"]))
    return dataset_tree(path)


SMALL_DISK = pytest.mark.parametrize("small_disk", ["24m"], indirect=True)
"""Enough for the dataset, not for much beside it."""


class Command:
    """`python -m data_gen` on a config, in a process that can be stopped and continued."""

    def __init__(self, dataset: Path, *arguments: str, largest_file: int | None = None) -> None:
        config = dataset.parent / "config.yaml"
        config.write_text(dump(override(CONFIG, [f"dataset.path={dataset}"])))

        def limit() -> None:
            if largest_file is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

        self.dataset = dataset
        self.process = subprocess.Popen(
            [sys.executable, "-m", "data_gen", *(arguments or [str(config)])],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=limit,  # noqa: PLW1509 - nothing else runs in this process
        )

    def stop_in_the_middle(self) -> None:
        """SIGSTOP once some shards are committed."""
        deadline = time.monotonic() + 120
        while len(list(self.dataset.glob("_commits/train/*.json"))) < 2:
            assert self.process.poll() is None, self.process.communicate()[0]
            assert time.monotonic() < deadline, "generation never began"
            time.sleep(0.01)
        os.kill(self.process.pid, signal.SIGSTOP)
        assert len(list(self.dataset.glob("_commits/train/*.json"))) < 15, "too late"

    def go_on(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)

    def output(self, code: int) -> str:
        output, _ = self.process.communicate(timeout=200)
        assert self.process.returncode == code, output
        assert "Traceback" not in output
        return output


def fill(path: Path, leave: int = 0) -> None:
    """Write zeros until the disk is full but for `leave` bytes."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(65536))
    os.truncate(path, path.stat().st_size - leave)


def require_intact(dataset: Path) -> int:
    """Nothing is damaged, something is missing: how many shards."""
    found = check(dataset)
    assert {fault.problem for fault in found.faults} == {NOT_COMMITTED}
    assert found.partials == 0
    with pytest.raises(ValueError, match="shards are missing"):
        SplitReader(dataset, "train")
    return len(found.faults)


@SMALL_DISK
def test_a_disk_that_fills_up_stops_the_work_and_costs_nothing_but_the_rest(
    small_disk: Path, whole: dict[str, bytes]
) -> None:
    dataset = small_disk / "set"
    command = Command(dataset)
    command.stop_in_the_middle()
    fill(small_disk / "ballast")
    command.go_on()
    output = command.output(code=1)
    assert (
        f"failed: {dataset}: No space left on device. What is committed is whole and stays; free some space" in output
    )
    absent = require_intact(dataset)
    assert 0 < absent < 17

    refused = Command(dataset).output(code=2)
    assert "free some space, or choose another disk with storage.root" in refused
    assert require_intact(dataset) == absent

    (small_disk / "ballast").unlink()
    Command(dataset).output(code=0)
    assert dataset_tree(dataset) == whole


@SMALL_DISK
def test_a_disk_that_is_full_during_a_repair_keeps_what_is_sound(small_disk: Path, whole: dict[str, bytes]) -> None:
    dataset = small_disk / "set"
    Command(dataset).output(code=0)
    for shard in (3, 7):
        path = dataset / "train.zarr" / "reward" / f"c.{shard}.0"
        path.write_bytes(path.read_bytes()[:-9])
    full = f"failed: {dataset}: No space left on device. What is committed is whole and stays; free some space"
    fill(small_disk / "ballast")
    assert full in Command(dataset, "repair", str(dataset)).output(code=1)
    fill(small_disk / "ballast", leave=LARGEST // 2)
    assert full in Command(dataset, "repair", str(dataset)).output(code=1)
    assert require_intact(dataset) == 2
    (small_disk / "ballast").unlink()
    assert "2 shards written again" in Command(dataset, "repair", str(dataset)).output(code=0)
    assert dataset_tree(dataset) == whole


def test_an_actors_full_disk_is_told_as_ones_own(tmp_path: Path) -> None:
    from ray.exceptions import RayTaskError

    def raised_by_an_actor(error: OSError) -> Exception:
        return RayTaskError("write", "the actor's traceback", error).as_instanceof_cause()

    full = f"^{tmp_path}: No space left on device. What is committed is whole"
    with pytest.raises(DiskFullError, match=full), disk_errors(tmp_path):
        raise raised_by_an_actor(OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(OSError, match="the actor's traceback") as other, disk_errors(tmp_path):
        raise raised_by_an_actor(OSError(errno.EISDIR, "Is a directory"))
    assert not isinstance(other.value, DiskFullError)


def test_a_limit_on_the_size_of_files_is_no_worse_than_a_full_disk(tmp_path: Path, whole: dict[str, bytes]) -> None:
    dataset = tmp_path / "set"
    output = Command(dataset, largest_file=LARGEST // 2).output(code=1)
    assert f"failed: {dataset}: File too large. What is committed is whole and stays" in output
    assert require_intact(dataset) == 17
    Command(dataset).output(code=0)
    assert dataset_tree(dataset) == whole


def test_of_two_writers_the_second_is_refused_and_the_first_goes_on(tmp_path: Path, whole: dict[str, bytes]) -> None:
    dataset = tmp_path / "set"
    first = Command(dataset)
    first.stop_in_the_middle()
    held = f"failed: {dataset} is in use by process {first.process.pid} on "
    before = {path: path.stat().st_mtime_ns for path in dataset.rglob("*") if path.name != ".lock"}
    assert held in Command(dataset).output(code=1)
    assert held in Command(dataset, "repair", str(dataset)).output(code=1)
    assert {path: path.stat().st_mtime_ns for path in dataset.rglob("*") if path.name != ".lock"} == before
    first.go_on()
    first.output(code=0)
    assert "0 trajectories by no actors" in Command(dataset).output(code=0)
    assert dataset_tree(dataset) == whole


def test_a_repair_that_is_killed_is_completed_by_the_next_or_by_generating(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    dataset = tmp_path / "set"
    config = override(CONFIG, [f"dataset.path={dataset}"])
    generate(config)

    def killed(done: int, total: int) -> None:
        assert total == 5
        if done == 2:
            raise KeyboardInterrupt

    for complete in (lambda: repair(dataset), lambda: generate(config)):
        for shard in range(2, 7):
            shutil.copy(dataset / "train.zarr" / "action" / "c.1.0", dataset / "train.zarr" / "action" / f"c.{shard}.0")
        with pytest.raises(KeyboardInterrupt):
            repair(dataset, progress=killed)
        assert len(plan(config).tasks) <= 3  # those in flight were finished
        complete()
        assert dataset_tree(dataset) == whole
