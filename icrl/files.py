"""Files that survive a kill: atomic durable writes, canonical JSON, sums, free space, and a lock that a kill frees.

Imports nothing heavier than the standard library.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

PARTIAL = ".partial"
"""Suffix of a file that is still being written: `.<name>.<pid>-<token>.partial`, beside its target."""
_LOCK_POLL_S = 0.2


def atomic_write(path: Path, data: bytes | Iterable[Any], *, durable: bool = True) -> None:
    """Write a file that is either absent (or as it was) or whole: a temporary file beside it, then a rename.

    `data` may be several contiguous buffers (bytes or arrays), written one after the other. `durable` also fsyncs the
    file and its directory, so that the file survives a power cut once this returns. The directory must exist.
    """
    atomic_write_all({path: [data] if isinstance(data, bytes) else data}, durable=durable)


def atomic_write_all(files: Mapping[Path, Iterable[Any]], *, durable: bool = True) -> None:
    """Several files as `atomic_write` does it: all are written before the first is synced, which spares the disk waits.

    A kill may leave some of them renamed and others not.
    """
    # the token keeps apart two writers of one file that have the same pid on two machines
    mark = f"{os.getpid()}-{secrets.token_hex(4)}{PARTIAL}"
    partials = {path: path.with_name(f".{path.name}.{mark}") for path in files}
    try:
        with contextlib.ExitStack() as stack:
            opened = []
            for path, buffers in files.items():
                file = stack.enter_context(partials[path].open("xb"))
                file.writelines(buffers)
                file.flush()
                opened.append(file)
            if durable:
                for file in opened:
                    os.fsync(file.fileno())
        for path, partial in partials.items():
            partial.replace(path)
    except BaseException as error:
        if isinstance(error, OSError) and error.errno and not error.filename:  # a full disk has told no name
            error.filename = str(next(iter(files)))
        for partial in partials.values():
            partial.unlink(missing_ok=True)
        raise
    if durable:
        for directory in dict.fromkeys(path.parent for path in files):
            fsync_directory(directory)


def fsync_directory(directory: Path) -> None:
    """Make renames and creations in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_file(path: Path) -> None:
    """Make what was written to a file durable, whoever wrote it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(directory: Path) -> None:
    """Create a directory and its missing parents, durably."""
    missing = [d for d in (directory, *directory.parents) if not d.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    for created in missing:
        fsync_directory(created.parent)


def sweep_partials(directory: Path) -> int:
    """Remove what killed writers left below a directory, and say how many; no writer may be at work there."""
    orphans = [path for path in directory.rglob(f".*{PARTIAL}") if path.is_file()]
    for path in orphans:
        path.unlink(missing_ok=True)
    return len(orphans)


def canonical_json(value: Any) -> bytes:
    """The one spelling of a value: sorted keys, no spaces, UTF-8, no NaN; equal values have equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def write_json(path: Path, value: Any, *, durable: bool = True) -> None:
    """Write JSON for people and machines: sorted keys, two spaces, a final newline; atomic."""
    atomic_write(path, json_bytes(value), durable=durable)


def json_bytes(value: Any) -> bytes:
    """What `write_json` writes."""
    return (json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        ValueError: if the file is not JSON; names it.
    """
    return parse_json(path.read_bytes(), path)


def parse_json(data: bytes, source: object) -> Any:
    """The value of JSON that was read from `source`.

    Raises:
        ValueError: if it is not JSON; names the source.
    """
    try:
        return json.loads(data)
    except ValueError as error:
        raise ValueError(f"{source} is not valid JSON: {error}") from error


def sha256_bytes(data: bytes) -> str:
    """The sha256 of bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """The sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def size_text(size: int) -> str:
    """A size for people: 12.2 GB."""
    amount = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def require_writable(option: str, path: Path) -> None:
    """Check that `path` can be made or written to.

    Raises:
        ValueError: names the option, the path and what stands in the way.
    """
    existing = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    if existing != path.absolute() and not existing.is_dir():
        raise ValueError(f"{option} = {path}: {existing} is a file, not a directory; choose another place")
    if not os.access(existing, os.W_OK):
        raise ValueError(f"{option} = {path}: {existing} cannot be written to; choose another place")


def require_free(path: Path, needed: int) -> None:
    """Check that the disk of `path` (or of its nearest existing parent) has `needed` bytes free.

    Raises:
        ValueError: names the path, what is needed and what is free.
    """
    existing = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise ValueError(
            f"{path} needs {size_text(needed)} and its disk has {size_text(free)} free: "
            "free some space, or choose another disk with storage.root"
        )


@contextlib.contextmanager
def locked(path: Path, *, patience: float = 0.0) -> Iterator[None]:
    """Hold a lock file for as long as the block runs; the lock dies with its holder, even by kill -9.

    The file stays behind, empty: removing it would let two processes lock two files of one name.

    Raises:
        ValueError: if another process holds it for longer than `patience` seconds; names the process. Or if the path
            is a link: what it points to would be emptied.
    """
    deadline = time.monotonic() + patience
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ValueError(f"{path} is a symbolic link, expected a lock file: remove it") from None
        raise
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    holder = os.pread(descriptor, 256, 0).decode(errors="replace").strip() or "(just starting)"
                    raise ValueError(f"{path.parent} is in use by process {holder}") from None
                time.sleep(_LOCK_POLL_S)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()} on {socket.gethostname()}".encode(), 0)
        try:
            yield
        finally:
            os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)
