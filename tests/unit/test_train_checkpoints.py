"""Training checkpoints: whole or absent, damage is found, and what is kept is always the newest good one."""

from __future__ import annotations

import contextlib
import errno
import json
import resource
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from icrl.config import Config, override
from icrl.files import sha256_file
from icrl.run_dir import RunDirectory
from train import checkpoints
from train.checkpoint_writer import CheckpointWriter


def write(root: Path, step: int, keep: int = 2) -> checkpoints.Checkpoint:
    tensors = {"weight/x": torch.full((3,), float(step))}
    return checkpoints.save(root, step, tensors, {"window": {}}, model=checkpoints.described(Config()), keep=keep)


def damage(root: Path, step: int) -> None:
    path = root / f"step-{step:08d}" / "engine.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def steps(root: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in root.iterdir())


def test_the_newest_are_kept_and_read_back(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        write(tmp_path, step)
    assert steps(tmp_path) == [20, 30]
    newest, damaged = checkpoints.latest(tmp_path)
    assert newest is not None
    assert (newest.step, damaged) == (30, [])
    assert torch.equal(newest.tensors()["weight/x"], torch.full((3,), 30.0))


@pytest.mark.parametrize("keep", [1, 2])
def test_a_checkpoint_after_damaged_newer_ones_is_never_deleted(keep: int, tmp_path: Path) -> None:
    for step in (40, 50, 60):
        write(tmp_path, step, keep=3)
    damage(tmp_path, 60)
    damage(tmp_path, 50)
    newest, damaged = checkpoints.latest(tmp_path)
    assert newest is not None
    assert newest.step == 40
    assert [entry.path.name for entry in damaged] == ["step-00000060", "step-00000050"]
    write(tmp_path, 45, keep=keep)
    assert 45 in steps(tmp_path)
    assert not {50, 60} & set(steps(tmp_path)), "a later kill must not find the damaged ones first"


@pytest.mark.parametrize("victim", ["engine.safetensors", "progress.json", "manifest.json"])
def test_a_torn_file_is_damage(victim: str, tmp_path: Path) -> None:
    write(tmp_path, 10)
    write(tmp_path, 20)
    path = tmp_path / "step-00000020" / victim
    path.write_bytes(path.read_bytes()[:-5])
    newest, damaged = checkpoints.latest(tmp_path)
    assert newest is not None
    assert newest.step == 10
    assert len(damaged) == 1


def test_what_a_killed_writer_left_is_swept(tmp_path: Path) -> None:
    orphan = tmp_path / ".step-00000030.123.partial"
    orphan.mkdir()
    write(tmp_path, 10)
    checkpoints.sweep(tmp_path)
    assert steps(tmp_path) == [10]


def test_a_damaged_one_is_not_counted_among_those_kept(tmp_path: Path) -> None:
    for step in (40, 50):
        write(tmp_path, step)
    damage(tmp_path, 50)
    write(tmp_path, 60)
    assert steps(tmp_path) == [40, 60]


def test_nothing_is_deleted_for_one_that_does_not_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (40, 50):
        write(tmp_path, step)
    durable = checkpoints.fsync_directory

    def lying(directory: Path) -> None:
        """A disk that loses what it was given."""
        durable(directory)
        if directory == tmp_path:
            damage(tmp_path, 60)

    monkeypatch.setattr(checkpoints, "fsync_directory", lying)
    with pytest.raises(checkpoints.CheckpointError, match=r"step-00000060 was written and does not read back \(engine"):
        write(tmp_path, 60)
    assert steps(tmp_path) == [40, 50, 60]
    newest, damaged = checkpoints.latest(tmp_path)
    assert newest is not None
    assert (newest.step, len(damaged)) == (50, 1)


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The system refuses to let a file of this process grow further; Python ignores the signal and raises EFBIG."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [40, 3000])
def test_a_disk_that_refuses_is_named_and_nothing_partial_stays(size: int, tmp_path: Path) -> None:
    write(tmp_path, 40)
    told = rf"{tmp_path}: the checkpoint of step 50 cannot be written \(File too large\): it needs 4.0 kB, the disk has"
    tensors = {"weight/x": torch.ones(1000)}
    with largest_file(size), pytest.raises(checkpoints.CheckpointError, match=f"{told}.*goes on from step 40"):
        checkpoints.save(tmp_path, 50, tensors, {}, model={}, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000040"]


def test_a_checkpoint_is_asked_for_by_its_step(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a whole checkpoint, got 0 damaged ones"):
        checkpoints.at(tmp_path, None)
    for step in (40, 50):
        write(tmp_path, step)
    assert checkpoints.at(tmp_path, None).step == 50
    assert checkpoints.at(tmp_path, 40).step == 40
    with pytest.raises(ValueError, match=r"--step = 45: .* expected one of \[40, 50\]"):
        checkpoints.at(tmp_path, 45)
    damage(tmp_path, 50)
    assert checkpoints.at(tmp_path, None).step == 40
    with pytest.raises(ValueError, match=r"--step = 50: .*step-00000050 is damaged .engine.safetensors does not match"):
        checkpoints.at(tmp_path, 50)
    damage(tmp_path, 40)
    with pytest.raises(ValueError, match=r"got 2 damaged ones\n.*step-00000050: engine.*\n.*step-00000040: engine"):
        checkpoints.at(tmp_path, None)


def test_a_checkpoint_of_another_model_is_told_by_its_manifest(tmp_path: Path) -> None:
    write(tmp_path, 40)
    checkpoints.require_model(tmp_path, Config())
    other = override(Config(), ["model.embed_dim=64", "environment.dim=3", "train.steps=1000"])
    with pytest.raises(ValueError, match="step-00000040 is a checkpoint of another model") as caught:
        checkpoints.require_model(tmp_path, other)
    assert "model.embed_dim: 32 -> 64\n" in str(caught.value)
    assert "environment.dim: 5 -> 3\n" in str(caught.value)
    assert "train" not in str(caught.value).replace(str(tmp_path), "")


def test_an_older_manifest_is_read_and_one_of_a_later_version_is_not(tmp_path: Path) -> None:
    write(tmp_path, 40)
    path = tmp_path / "step-00000040" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({key: manifest[key] for key in ("step", "sha256")}))
    checkpoints.require_model(tmp_path, override(Config(), ["model.embed_dim=64"]))
    assert checkpoints.at(tmp_path, 40).progress() == {"window": {}}
    write(tmp_path, 50)
    path.write_text(json.dumps(manifest | {"format": 9}))
    newer = tmp_path / "step-00000060"
    shutil.copytree(path.parent, newer)
    expected = f"{newer}: its format is 9, expected 1: another version of icrl wrote it"
    with pytest.raises(ValueError, match=expected):
        checkpoints.require_model(tmp_path, Config())
    with pytest.raises(checkpoints.CheckpointError, match=expected):
        checkpoints.latest(tmp_path)
    assert steps(tmp_path) == [40, 50, 60]


def test_one_that_the_disk_refuses_to_read_is_not_taken_for_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (10, 20):
        write(tmp_path, step)

    def refuse(path: Path) -> str:
        if "step-00000020" in str(path):
            raise OSError(errno.EIO, "Input/output error", str(path))
        return sha256_file(path)

    monkeypatch.setattr(checkpoints, "sha256_file", refuse)
    with pytest.raises(checkpoints.CheckpointError, match=r"step-00000020 cannot be read .*Input/output error"):
        checkpoints.latest(tmp_path)
    write(tmp_path, 30, keep=2)
    assert steps(tmp_path) == [20, 30], "it may be whole, and is kept as one that is"


@pytest.fixture
def writer(tmp_path: Path) -> CheckpointWriter:
    run = RunDirectory(tmp_path)
    run.metrics.touch()
    return CheckpointWriter(run, override(Config(), ["train.keep_checkpoints=1"]))


def put(writer: CheckpointWriter, step: int) -> None:
    writer.start(step, {"weight/x": torch.ones(1000)}, {"workers": 2})


def test_training_goes_on_while_a_checkpoint_is_written(
    writer: CheckpointWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk_is_quick = threading.Event()
    save = checkpoints.save
    monkeypatch.setattr(checkpoints, "save", lambda *args, **options: disk_is_quick.wait(60) and save(*args, **options))
    put(writer, 10)
    assert not (tmp_path / "checkpoints").exists(), "start returns before anything is written"
    assert not writer.failed
    with pytest.raises(AssertionError, match="one in flight"):
        put(writer, 20)
    disk_is_quick.set()
    writer.wait()
    assert steps(tmp_path / "checkpoints") == [10]
    assert RunDirectory(tmp_path).status()["step"] == 10
    put(writer, 20)
    writer.wait()
    assert steps(tmp_path / "checkpoints") == [20]
    writer.wait()


def test_what_stops_the_writer_is_seen_at_the_next_step_and_raised(writer: CheckpointWriter, tmp_path: Path) -> None:
    put(writer, 10)
    writer.wait()
    with largest_file(3000):
        put(writer, 20)
        while not writer.failed:
            threading.Event().wait(0.01)
    with pytest.raises(checkpoints.CheckpointError, match="the checkpoint of step 20 cannot be written"):
        writer.wait()
    assert not writer.failed
    assert steps(tmp_path / "checkpoints") == [10]
    assert RunDirectory(tmp_path).status()["step"] == 10
    put(writer, 30)
    writer.wait()
    assert steps(tmp_path / "checkpoints") == [30]


def test_whatever_the_writer_meets_with_ends_training_in_order(writer: CheckpointWriter, tmp_path: Path) -> None:
    writer.start(20, {"weight/x": torch.ones(3)}, {"workers": 2, "window": float("nan")})
    with pytest.raises(
        checkpoints.CheckpointError, match=r"the checkpoint of step 20: ValueError: .*not JSON compliant"
    ):
        writer.wait()
    assert steps(tmp_path / "checkpoints") == []
