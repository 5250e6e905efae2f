"""A run in an object store: worked on in a directory of this machine, its mirror, and put to s3:// as it goes.

The bucket is the truth. A session (`working`) holds the run's lock there, fetches what other machines have done since,
and puts what it changed when it ends; in between, every checkpoint is put once it is written (`Mirror.push`), its
manifest last, and only then what it replaces is deleted. So a machine may vanish with its disk: the same command
elsewhere goes on from the newest checkpoint in the bucket. Keys and bytes are those of the directory, without logs/.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from icrl.config import OBJECT_SCHEME, Config
from icrl.files import atomic_write, locked, make_directory, read_json, write_json
from icrl.run_dir import RunConflictError, RunDirectory, default_path, mirror_name
from icrl.store.lease import leased, require
from icrl.store.objects import LARGEST_PUT, ObjectPath
from icrl.store.place import dataset_place

LOCK = "lock.json"
_INDEX = ".mirror.json"
"""In the mirror alone: its own path (a copy is no mirror, wherever it lies), the URL, the session that worked here
last, and what of which size and time is in the bucket."""
_OF_THIS_MACHINE = frozenset({"logs", "stop.json"})
_REPLACED = ("checkpoints/", "best/", "events.out.tfevents.")
"""What training deletes by itself; the rest of the bucket is only ever written anew."""
_DATA = ("checkpoints/*", "best/*")
"""What comes after the records, which are small, and before what says that it is there."""
_LAST = ("run.json", "checkpoints/step-*/manifest.json", "model.safetensors", "results.json")
"""Files that say that others are there, in the order to put them."""

Stamp = list[int]
"""Size and modification time (ns) of a file."""


@dataclass(frozen=True)
class Mirror:
    """The mirror that a directory is, for the processes of the session that works on it."""

    run: RunDirectory
    place: ObjectPath
    token: str

    @staticmethod
    def of(run: RunDirectory) -> Mirror | None:
        """None for a directory that mirrors nothing."""
        index = _index(run.path)
        return Mirror(run, ObjectPath.parse(index["url"]), index["token"]) if index else None

    def push(self) -> None:
        """Put what has changed, and delete what training has deleted; one process of the session at a time.

        Raises:
            LeaseLostError: another session works on the run by now.
            OSError: the store does not answer, or refuses; or the mirror is gone.
        """
        lock = self.place / LOCK
        require(lock, self.token)  # also where nothing is to be put
        index = read_json(self.run.path / _INDEX)
        known: dict[str, Stamp] = index["files"]
        there, here = self.place.walk(), _files(self.run.path)
        for name in sorted(here, key=_order):
            stamp = here[name]
            if known.get(name) == stamp and there.get(name) == stamp[0]:
                continue
            try:
                data = (self.run.path / name).read_bytes()
            except FileNotFoundError:  # replaced meanwhile
                continue
            require(lock, self.token)  # long since the last look, perhaps: a machine may have been suspended
            (self.place / name).write_bytes(data)
            known[name] = [len(data), stamp[1]]
        for name in _superseded(here, there):
            require(lock, self.token)
            (self.place / name).unlink(missing_ok=True)
            known.pop(name, None)
        write_json(self.run.path / _INDEX, index | {"files": known})


def require_fits(config: Config, checkpoint_bytes: int) -> None:
    """Check that a checkpoint of this size can be put where the config wants the run.

    Raises:
        ValueError: S3 takes no object so large in one request.
    """
    if _url(config) and checkpoint_bytes > LARGEST_PUT:
        raise ValueError(
            f"run.dir = {config.run.dir}: expected checkpoints of at most {LARGEST_PUT / 2**30:.0f} GiB there, got "
            f"{checkpoint_bytes / 2**30:.1f} GiB; choose a run.dir on a disk or a mount"
        )


def require_no_mirror(config: Config, what: str) -> None:
    """Check that the run lies on a disk, for a command whose processes need not share this machine's.

    Raises:
        ValueError: it lies in an object store; says what to do instead.
    """
    if _url(config):
        raise ValueError(
            f"run.dir = {config.run.dir}: expected a directory for {what}; use storage.root=/shared/path, which all "
            "nodes mount, or train on one machine with python -m train or python -m cluster run"
        )


@contextlib.contextmanager
def working(config: Config) -> Iterator[None]:
    """Work on the run of a config, as `default_path` names it; nothing where it lies on a disk.

    Raises:
        ValueError: another command works on it, here or on another machine, or the prefix holds something else.
        OSError: the store does not answer, or refuses.
    """
    path = default_path(config)
    index = _index(path)
    url = _url(config) or (index["url"] if index else None)
    with _session(path, url) if url else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def working_on(given: str) -> Iterator[RunDirectory]:
    """Work on the run that a command line names: a directory, or s3://bucket/prefix, mirrored below runs/ here.

    Raises:
        RunConflictError: there is no run.
        ValueError, OSError: as `working`.
    """
    place = dataset_place(given, "RUN_DIR")
    if isinstance(place, Path):
        index = _index(place.absolute())
        with _session(place.absolute(), index["url"]) if index else contextlib.nullcontext():
            yield RunDirectory.existing(place)
        return
    if not (place / "run.json").exists():
        raise RunConflictError(f"RUN_DIR = {given}: expected a run (with run.json), got nothing of the kind there")
    path = Path("runs").absolute() / mirror_name(given)
    with _session(path, given):
        yield RunDirectory.existing(path)


@contextlib.contextmanager
def _session(path: Path, url: str) -> Iterator[None]:
    place = ObjectPath.parse(url)
    _require_run(place)
    make_directory(path)
    with locked(path / ".mirror.lock"):
        index = _index(path)
        # the lock of this directory is ours: whoever worked in it before is dead
        mine = index["token"] if index and index["url"] == url else None
        token, owner = secrets.token_hex(16), f"process {os.getpid()} on {socket.gethostname()}"
        with leased(place / LOCK, token, owner, dead=mine) as last:
            files: dict[str, Stamp] = index["files"] if index else {}
            if last is None or last != mine:
                files = _fetch(place, path)
            write_json(path / _INDEX, {"mirror": str(path), "url": url, "token": token, "files": files})
            try:
                yield
            finally:
                if (path / "run.json").exists():
                    Mirror(RunDirectory(path), place, token).push()


def _require_run(place: ObjectPath) -> None:
    """Refuse a prefix that holds something, but no run and none that was begun."""
    there = place.walk()
    if there and LOCK not in there and "run.json" not in there:
        listed = ", ".join(sorted({name.partition("/")[0] for name in there})[:5])
        raise RunConflictError(
            f"run.dir = {place}: expected nothing there or a run, got {listed}; choose another run.dir"
        )


def _fetch(place: ObjectPath, path: Path) -> dict[str, Stamp]:
    """Make the mirror what the bucket holds; where it holds no run, the mirror stays, and is put there later."""
    there = place.walk()
    (path / _INDEX).unlink(missing_ok=True)  # until all is here
    if "run.json" not in there:
        return {}
    for entry in path.iterdir():
        if entry.name not in _OF_THIS_MACHINE and not entry.name.endswith(".lock"):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    files = {}
    for name in sorted(there, key=_order):
        folder, _, _ = name.rpartition("/")
        if name == LOCK or not _belongs(name):
            continue
        if folder.startswith("checkpoints/") and f"{folder}/manifest.json" not in there:
            continue  # it was being put when its machine died
        make_directory(path / folder)
        atomic_write(path / name, (place / name).read_bytes(), durable=False)
        files[name] = _stamp(path / name)
    return files


def _superseded(here: dict[str, Stamp], there: dict[str, int]) -> list[str]:
    """What is in the bucket and no longer in the mirror, of what training deletes; manifests first.

    Nothing while the mirror has no whole checkpoint: it may be on its way out itself.
    """
    if not any(name.startswith("checkpoints/") and name.endswith("/manifest.json") for name in here):
        return []
    gone = [name for name in there if name not in here and name.startswith(_REPLACED)]
    return sorted(gone, key=_order, reverse=True)


def _files(path: Path) -> dict[str, Stamp]:
    """What of the mirror belongs to the bucket.

    Raises:
        FileNotFoundError: the mirror is gone.
    """
    found = {}
    for folder, folders, names in os.walk(path):
        above = Path(folder).relative_to(path)
        folders[:] = [name for name in folders if _belongs((above / name).as_posix())]
        for name in names:
            inner = (above / name).as_posix()
            if _belongs(inner):
                with contextlib.suppress(FileNotFoundError):  # replaced meanwhile
                    found[inner] = _stamp(path / inner)
    if "run.json" not in found:
        raise FileNotFoundError(f"{path}: the mirror of the run is gone; the same command fetches it again")
    return found


def _belongs(name: str) -> bool:
    """Whether a file of this name, relative to the run, is mirrored; nothing hidden is, and nothing outside the run."""
    parts = name.split("/")
    return parts[0] not in _OF_THIS_MACHINE and all(part and part[0] != "." for part in parts)


def _stamp(file: Path) -> Stamp:
    status = file.stat()
    return [status.st_size, status.st_mtime_ns]


def _order(name: str) -> tuple[int, str]:
    """Records first, then data, and whatever says that others are there after them."""
    if number := next((number for number, last in enumerate(_LAST, 2) if fnmatchcase(name, last)), 0):
        return number, name
    return int(any(fnmatchcase(name, data) for data in _DATA)), name


def _index(path: Path) -> dict[str, Any] | None:
    """What is known of the mirror in this directory; None where it is none."""
    file = path / _INDEX
    index = dict(read_json(file)) if file.exists() else {}
    return index if index.get("mirror") == str(path) else None


def _url(config: Config) -> str | None:
    name = config.run.dir
    return name.removesuffix("/") if name and name.startswith(OBJECT_SCHEME) else None
