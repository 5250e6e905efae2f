"""Training checkpoints: whole or absent, damage is found, and what is kept is always the newest good one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from icrl.config import Config
from train import checkpoints


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
