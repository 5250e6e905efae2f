"""Checkpoints of a run: complete or absent, checked when read, without pickle.

    checkpoints/step-00000500/{engine.safetensors, progress.json, manifest.json}

A checkpoint is written aside, fsynced and renamed; the manifest holds the sha256 of its files. The newest one whose
sums hold is the one to resume from, so a damaged checkpoint costs only the steps since the one before.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from icrl.files import fsync_directory, read_json, sha256_file, write_json

_STATE, _PROGRESS, _MANIFEST = "engine.safetensors", "progress.json", "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    path: Path
    step: int

    def tensors(self) -> dict[str, Tensor]:
        """The engine's state (`train.engine.Engine.state`)."""
        return dict(load_file(self.path / _STATE))

    def progress(self) -> dict[str, Any]:
        """What the loop keeps beside the tensors."""
        return dict(read_json(self.path / _PROGRESS))


@dataclass(frozen=True)
class Damaged:
    """A checkpoint that cannot be used, and why."""

    path: Path
    reason: str


def save(root: Path, step: int, tensors: Mapping[str, Tensor], progress: Mapping[str, Any], keep: int) -> Checkpoint:
    """Write the checkpoint of `step`, then delete all but it and the `keep` - 1 before it."""
    final = root / f"step-{step:08d}"
    aside = root / f".{final.name}.{os.getpid()}.partial"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    save_file(dict(tensors), aside / _STATE)
    with (aside / _STATE).open("rb") as file:
        os.fsync(file.fileno())
    write_json(aside / _PROGRESS, progress)
    sums = {name: sha256_file(aside / name) for name in (_STATE, _PROGRESS)}
    write_json(aside / _MANIFEST, {"step": step, "sha256": sums})
    fsync_directory(aside)
    shutil.rmtree(final, ignore_errors=True)
    aside.rename(final)
    fsync_directory(root)
    # newer ones are damaged or of an abandoned attempt: `latest` passed them over
    others = [path for path in _directories(root) if path != final]
    for old in [path for path in others if path > final] + [path for path in others if path < final][keep - 1 :]:
        shutil.rmtree(old)
    return Checkpoint(final, step)


def latest(root: Path) -> tuple[Checkpoint | None, list[Damaged]]:
    """The newest checkpoint that is whole, and the damaged ones that are newer."""
    damaged: list[Damaged] = []
    for path in _directories(root):
        reason = _damage(path)
        if reason is None:
            return Checkpoint(path, int(path.name.removeprefix("step-"))), damaged
        damaged.append(Damaged(path, reason))
    return None, damaged


def sweep(root: Path) -> None:
    """Remove what a killed writer left aside."""
    for orphan in root.glob(".step-*.partial"):
        shutil.rmtree(orphan, ignore_errors=True)


def _directories(root: Path) -> list[Path]:
    return sorted((path for path in root.glob("step-*") if path.is_dir()), reverse=True)


def _damage(path: Path) -> str | None:
    try:
        sums = read_json(path / _MANIFEST)["sha256"]
        for name, expected in sums.items():
            if sha256_file(path / name) != expected:
                return f"{name} does not match its sha256"
    except (OSError, ValueError, KeyError) as error:
        return f"{type(error).__name__}: {error}"
    return None
