"""What has piled up under a runs root: finding runs, naming them, their state in a line, and removing them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.sweep_state import SweepDirectory
from icrl.files import read_json
from icrl.run_dir import RunDirectory

CRASHED = "crashed"
"""Shown for a run whose state is still "training" while nobody works on it: a kill ended it."""

DAMAGED = "damaged"
"""Shown for a run whose files cannot be read, or say something else than they should."""

_DAMAGE = (ValueError, OSError, KeyError, TypeError, AttributeError)
"""What reading the files of a damaged run raises."""

_REMOVED = re.compile(r"\..+\.[0-9a-f]{8}\.removed")
"""Name of a run that is being removed."""

_DEPTH = 4
"""Directories between the root and a run; a sweep's trial lies at runs/<sweep>/trials/<trial>."""


@dataclass(frozen=True)
class Found:
    """A run and what it is called: its path below the runs root."""

    name: str
    run: RunDirectory


@dataclass(frozen=True)
class Summary:
    """A run in a line."""

    name: str
    path: str
    state: str
    in_use: bool
    step: int | None
    steps: int | None
    teacher_ratio: float | None
    updated: float
    """Seconds since 1970."""
    bytes: int


def walk(root: Path, depth: int = _DEPTH) -> Iterator[Path]:
    """The directories that are a run, or hold event files, at or below `root`; nothing below them."""
    if (root / "run.json").is_file() or any(root.glob("events.out.tfevents.*")):
        yield root
    elif depth >= 0 and root.is_dir():
        for entry in sorted(root.iterdir()):
            if entry.is_dir() and not entry.is_symlink() and not entry.name.startswith("."):
                yield from walk(entry, depth - 1)


@dataclass(frozen=True)
class FoundSweep:
    """A sweep below the runs root, and its trials."""

    name: str
    directory: SweepDirectory
    trials: tuple[Found, ...]


def find(root: Path) -> list[Found]:
    """Every run below the root, by name."""
    runs = (path for path in walk(root) if path != root and (path / "run.json").is_file())
    return [Found(str(path.relative_to(root)), RunDirectory(path)) for path in runs]


def named(root: Path, names: Sequence[str]) -> list[Found]:
    """The runs that the names stand for: each a directory below the root, a run's name, or a prefix of one name.

    Raises:
        ValueError: a name stands for no run or for several, or for a directory outside the root.
    """
    found = find(root)
    chosen: dict[str, Found] = {}
    for name in names:
        one = _one(root, found, name)
        chosen[one.name] = one
    return list(chosen.values())


def sweep_named(root: Path, name: str) -> FoundSweep | None:
    """The sweep of exactly this name or directory; None where there is none.

    Raises:
        ValueError: the directory lies outside the root.
    """
    for path in (root / name, Path(name)):
        if name.strip("./") and (path / "sweep.json").is_file():
            here = _below(root, path, name)
            trials = tuple(found for found in find(root) if found.run.path.resolve().is_relative_to(here))
            return FoundSweep(str(here.relative_to(root.resolve())), SweepDirectory(here), trials)
    return None


def _below(root: Path, path: Path, name: str) -> Path:
    """The path with links followed: what it points to must lie below the root as well."""
    here, top = path.resolve(), root.resolve()
    if not here.is_relative_to(top) or here == top:
        raise ValueError(f"RUN = {name}: expected a run below {root}, got {here}; give the root with --root")
    return here


def _one(root: Path, found: Sequence[Found], name: str) -> Found:
    path = Path(name)
    if (path / "run.json").is_file():
        here = _below(root, path, name)
        return Found(str(here.relative_to(root.resolve())), RunDirectory(here))
    plain = name.rstrip("/")
    exact = [entry for entry in found if plain in (entry.name, Path(entry.name).name)]
    near = [entry for entry in found if entry.name.startswith(plain) or Path(entry.name).name.startswith(plain)]
    candidates = exact if len(exact) == 1 else near
    if plain and len(candidates) == 1:
        return candidates[0]
    what = f"{len(candidates)} runs: " + ", ".join(entry.name for entry in candidates[:5])
    got = what if plain and candidates else "none of that name"
    raise ValueError(f"RUN = {name}: expected a directory, a name or the beginning of one run below {root}, got {got}")


def in_use(run: RunDirectory) -> bool:
    """Whether a command works on the run, or ranks train it whose command is gone."""
    return any(_held(run.path / name) for name in (".lock", ".training.lock"))


def _held(lock: Path) -> bool:
    """Whether a process holds a lock file; asks the lock only where a holder has written its name."""
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    with os.fdopen(descriptor, "rb") as file:
        if not file.read():
            return False
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def listed(found: Found) -> Summary | None:
    """The run in a line, whatever its files are like; None where it has been removed meanwhile."""
    path = found.run.path
    try:
        return summary(found)
    except _DAMAGE:
        used = False
        with contextlib.suppress(OSError):
            used = in_use(found.run)
        try:
            updated = path.stat().st_mtime
        except FileNotFoundError:
            return None
        return Summary(found.name, str(path), DAMAGED, used, None, None, None, updated, size(path))


def state(run: RunDirectory) -> str:
    """What the run's status says."""
    try:
        return str(run.status()["state"])
    except _DAMAGE:
        return DAMAGED


def summary(found: Found) -> Summary:
    """The run in a line.

    Raises:
        ValueError, OSError, KeyError, TypeError, AttributeError: the run is damaged.
    """
    run = found.run
    status, used = run.status(), in_use(run)
    state = CRASHED if status["state"] == "training" and not used else status["state"]
    record = read_json(run.path / "run.json")
    ratio = read_json(run.results).get("teacher_ratio") if run.results.is_file() else None
    return Summary(
        name=found.name,
        path=str(run.path),
        state=state,
        in_use=used,
        step=status.get("step"),
        steps=run.config().train.steps,
        teacher_ratio=ratio["value"] if ratio else None,
        updated=status.get("time", record["created"]),
        bytes=size(run.path),
    )


def size(directory: Path) -> int:
    """Bytes of the files below a directory; links count for nothing."""
    total = 0
    for folder, _, files in os.walk(directory):
        for name in files:
            with contextlib.suppress(FileNotFoundError):  # a run in use replaces its files
                total += (Path(folder) / name).lstat().st_size
    return total


def age(seconds: float) -> str:
    """A span of time for people: 3 h."""
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def remove(found: Found) -> int:
    """Delete a run and return the bytes it held.

    Raises:
        ValueError: somebody works on it.
    """
    with found.run.alone():
        return _delete(found.run.path)


def remove_sweep(found: FoundSweep) -> int:
    """Delete a sweep with all its trials and return the bytes it held.

    Raises:
        ValueError: a command runs the sweep, or somebody works on one of its trials; nothing is deleted then.
    """
    with found.directory.lock(), contextlib.ExitStack() as held:
        for trial in found.trials:
            held.enter_context(trial.run.alone())
        return _delete(found.directory.path)


def _delete(path: Path) -> int:
    freed = size(path)
    # out of the way first: whoever looks meanwhile finds no half of a run
    doomed = path.with_name(f".{path.name}.{secrets.token_hex(4)}.removed")
    path.rename(doomed)
    while doomed.exists():
        with contextlib.suppress(FileNotFoundError):  # another command sweeps it up, too
            shutil.rmtree(doomed)
    return freed


def sweep_removed(root: Path, depth: int = _DEPTH) -> None:
    """Delete what a removal that was killed has left at or below `root`: it was asked for, and no command sees it."""
    if not root.is_dir() or (root / "run.json").is_file():
        return
    for entry in sorted(root.iterdir()):
        if entry.is_symlink() or not entry.is_dir():
            continue
        if _REMOVED.fullmatch(entry.name):
            with contextlib.suppress(OSError):
                if not in_use(RunDirectory(entry)):
                    shutil.rmtree(entry, ignore_errors=True)
        elif depth > 0 and not entry.name.startswith("."):
            sweep_removed(entry, depth - 1)


def row(line: Summary) -> dict[str, Any]:
    """The cells of a listing."""
    step = "-" if line.step is None else f"{line.step:,}"
    return {
        "run": line.name,
        "state": line.state,
        "step": step if line.step in (None, line.steps) else f"{step} of {line.steps:,}",
        "x teacher": "-" if line.teacher_ratio is None else f"{line.teacher_ratio:.2f}",
        "age": age(time.time() - line.updated),
    }
