"""Checkpoints of a run: complete or absent, checked when read, without pickle.

    checkpoints/step-00000500/{engine.safetensors, progress.json, manifest.json}

A checkpoint is written aside, fsynced and renamed; the manifest holds the sha256 of its files and what model they are
of. The newest one whose sums hold is the one to resume from, so a damaged checkpoint costs only the steps since the one
before. There is no pointer to the latest: the name of a directory is its step, and a pointer could only disagree.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from icrl.config import Config, difference
from icrl.config.build import to_dict
from icrl.files import fsync_directory, fsync_file, make_directory, read_json, sha256_file, size_text, write_json

FORMAT = 1
STATE = "engine.safetensors"
_PROGRESS, _MANIFEST = "progress.json", "manifest.json"


class CheckpointError(OSError):
    """A checkpoint could not be written; those before it stay, and the run resumes from the newest of them."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    path: Path
    step: int

    def tensors(self) -> Mapping[str, Tensor]:
        """The engine's state (`train.engine.Engine.state`), each tensor read when it is asked for."""
        return _Tensors(self.path / STATE)

    def progress(self) -> dict[str, Any]:
        """What the loop keeps beside the tensors."""
        return dict(read_json(self.path / _PROGRESS))


class _Tensors(Mapping[str, Tensor]):
    def __init__(self, path: Path) -> None:
        self._file = safe_open(path, "pt")
        self._names: list[str] = list(self._file.keys())  # type: ignore[no-untyped-call]

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._file.get_tensor(name)  # type: ignore[no-untyped-call]
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@dataclass(frozen=True)
class Damaged:
    """A checkpoint that cannot be used, and why."""

    path: Path
    reason: str


def save(
    root: Path,
    step: int,
    tensors: Mapping[str, Tensor],
    progress: Mapping[str, Any],
    *,
    model: Mapping[str, Any],
    keep: int,
) -> Checkpoint:
    """Write the checkpoint of `step`, then delete all but it and the `keep` - 1 newest whole ones before it.

    `model` says what the tensors are of (`described`). Nothing is deleted before the new one is there and reads back.

    Raises:
        CheckpointError: the disk is full, or refuses; what was there is as it was.
    """
    final = _directory(root, step)
    aside = root / f".{final.name}.{os.getpid()}.partial"
    try:
        _write(aside, step, tensors, progress, model)
        if final.exists():  # damaged, or of an abandoned attempt: `latest` passed it over
            _remove(final)
        aside.rename(final)
        fsync_directory(root)
        _prune(root, final, keep)
    except Exception as error:
        shutil.rmtree(aside, ignore_errors=True)
        if isinstance(error, CheckpointError) or not isinstance(error, OSError | SafetensorError):
            raise
        raise CheckpointError(_refusal(root, step, tensors, error)) from error
    return Checkpoint(final, step)


def latest(root: Path) -> tuple[Checkpoint | None, list[Damaged]]:
    """The newest checkpoint that is whole, and the damaged ones that are newer.

    Raises:
        CheckpointError: one cannot be judged: another version of icrl wrote it, or the disk refuses to read it.
    """
    damaged: list[Damaged] = []
    for path in _directories(root):
        reason = _damage(path)
        if reason is None:
            return Checkpoint(path, _step(path)), damaged
        damaged.append(Damaged(path, reason))
    return None, damaged


def at(root: Path, step: int | None) -> Checkpoint:
    """The checkpoint of a step, or with None the newest that is whole.

    Raises:
        ValueError: there is none, or it is damaged; names what is there.
    """
    steps = sorted(map(_step, _directories(root)))
    if step is None:
        newest, damaged = latest(root)
        if newest is None:
            reasons = "".join(f"\n  {entry.path}: {entry.reason}" for entry in damaged)
            raise ValueError(f"{root}: expected a whole checkpoint, got {len(damaged)} damaged ones{reasons}")
        return newest
    path = _directory(root, step)
    if step not in steps:
        raise ValueError(f"--step = {step}: {root} has no checkpoint of it; expected one of {steps}")
    if (reason := _damage(path)) is not None:
        raise ValueError(f"--step = {step}: {path} is damaged ({reason}); expected a whole one of {steps}")
    return Checkpoint(path, step)


def described(config: Config) -> dict[str, Any]:
    """What a model is, as the manifest keeps it: its section of the config, and the environment that it reads."""
    return {"model": to_dict(config.model), "environment": to_dict(config.environment)}


def require_model(root: Path, config: Config) -> None:
    """Check that the newest checkpoint is of the config's model and this version's format, by its manifest alone.

    Raises:
        ValueError: it is of another one; the message holds both sides.
    """
    for path in _directories(root):
        try:
            manifest = read_json(path / _MANIFEST)
            written, found = manifest.get("format", FORMAT), manifest["model"]
        except (OSError, ValueError, KeyError, AttributeError):  # damaged: passed over, as `latest` does
            continue
        if written != FORMAT:
            raise ValueError(_foreign(path, written))
        if changes := difference(found, described(config)):
            raise ValueError(
                f"{path} is a checkpoint of another model (checkpoint -> config):\n  "
                + "\n  ".join(changes)
                + "\nchoose another run.dir, or undo the change"
            )
        return


def bytes_needed(parameters: int) -> int:
    """Size of a checkpoint: weights and two Adam moments in float32."""
    return 12 * parameters


def sweep(root: Path) -> None:
    """Remove what a killed writer left aside."""
    for orphan in root.glob(".step-*.partial"):
        shutil.rmtree(orphan, ignore_errors=True)


def _write(
    aside: Path, step: int, tensors: Mapping[str, Tensor], progress: Mapping[str, Any], model: Mapping[str, Any]
) -> None:
    shutil.rmtree(aside, ignore_errors=True)
    make_directory(aside)
    save_file(dict(tensors), aside / STATE)
    fsync_file(aside / STATE)
    write_json(aside / _PROGRESS, progress)
    sums = {name: sha256_file(aside / name) for name in (STATE, _PROGRESS)}
    write_json(aside / _MANIFEST, {"format": FORMAT, "step": step, "model": model, "sha256": sums})
    fsync_directory(aside)


def _prune(root: Path, newest: Path, keep: int) -> None:
    """Keep `newest` and the `keep` - 1 newest whole ones before it; a damaged one never counts for a whole one."""
    if (reason := _damage(newest)) is not None:
        raise CheckpointError(f"{newest} was written and does not read back ({reason}): is the disk sound?")
    kept = 1
    for path in _directories(root):
        if path == newest:
            continue
        # newer ones are damaged or of an abandoned attempt: `latest` passed them over
        if path < newest and kept < keep and _is_whole(path):
            kept += 1
        else:
            _remove(path)


def _remove(path: Path) -> None:
    """Delete a checkpoint so that it is there or gone, whenever this is killed."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.old.partial")
    path.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def _refusal(root: Path, step: int, tensors: Mapping[str, Tensor], error: Exception) -> str:
    number = re.search(r"os error (\d+)", str(error))  # safetensors tells it in words
    code = error.errno if isinstance(error, OSError) else int(number[1]) if number else None
    reason = str(error) if code is None else os.strerror(code)
    needed = sum(tensor.nbytes for tensor in tensors.values())
    free = shutil.disk_usage(root if root.exists() else root.parent).free
    older = next(map(_step, _directories(root)), 0)
    return (
        f"{root}: the checkpoint of step {step} cannot be written ({reason}): it needs {size_text(needed)}, the disk "
        f"has {size_text(free)} free. Make room; the same command then goes on from step {older}"
    )


def _directory(root: Path, step: int) -> Path:
    return root / f"step-{step:08d}"


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _directories(root: Path) -> list[Path]:
    """Newest first."""
    return sorted((path for path in root.glob("step-*") if path.is_dir()), reverse=True)


def _damage(path: Path) -> str | None:
    """Why a checkpoint is not whole; None when it is. CheckpointError where that cannot be said: it may be."""
    try:
        manifest = read_json(path / _MANIFEST)
        written = manifest.get("format", FORMAT)  # the first ones had no such key
        if written == FORMAT:
            for name in (STATE, _PROGRESS):
                if sha256_file(path / name) != manifest["sha256"][name]:
                    return f"{name} does not match its sha256"
            return None
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error}); try again once its disk can") from error
    raise CheckpointError(_foreign(path, written))


def _foreign(path: Path, written: object) -> str:
    return (
        f"{path}: its format is {written}, expected {FORMAT}: another version of icrl wrote it; go on with that one, "
        "or choose another run.dir"
    )


def _is_whole(path: Path) -> bool:
    """Whether it must be counted among those kept; what cannot be judged is left alone."""
    try:
        return _damage(path) is None
    except CheckpointError:
        return True
