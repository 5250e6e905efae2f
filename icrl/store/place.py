"""Where a dataset lies, a directory or a prefix of an object store, and what differs between the two.

Both have `/`, `name`, `parent`, `exists`, `is_dir`, `iterdir`, `read_bytes` and `unlink`; the rest is here.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import icrl.files
from icrl.config import OBJECT_SCHEME, without_credentials
from icrl.files import PARTIAL, atomic_write, json_bytes, locked, parse_json
from icrl.store.objects import ObjectPath, joined

Place = Path | ObjectPath

LOCK_FILE = ".lock"


def place(url: str, root: str) -> Place:
    """The place that a config names: s3://bucket/prefix, or a directory, relative ones under `root`."""
    if url.startswith(OBJECT_SCHEME):
        return ObjectPath.parse(url)
    return Path(root).expanduser().absolute() / Path(url).expanduser()


def dataset_place(given: str, option: str = "STORE") -> Place:
    """The place of a dataset (or of what else `option` names) as given on a command line.

    Raises:
        ValueError: a URL that is not s3://bucket/prefix.
    """
    if "://" not in given:
        return Path(given).expanduser()
    try:
        return ObjectPath.parse(given)
    except ValueError as error:
        raise ValueError(f"{option} = {without_credentials(given)}: expected {error}") from None


def write(target: Place, data: bytes | Iterable[Any]) -> None:
    """Write a file that is either absent (or as it was) or whole, and durable; buffers one after the other."""
    if isinstance(target, Path):
        atomic_write(target, data)
    else:
        target.write_bytes(joined(data))


def write_all(files: Mapping[Place, Iterable[Any]]) -> None:
    """Several files as `write` does it; a kill may leave some of them and not others."""
    local = {path: buffers for path, buffers in files.items() if isinstance(path, Path)}
    icrl.files.atomic_write_all(local)
    for path, buffers in files.items():
        if not isinstance(path, Path):
            path.write_bytes(joined(buffers))


def write_json(target: Place, value: Any) -> None:
    """Write JSON for people and machines, as `icrl.files.write_json` does."""
    write(target, json_bytes(value))


def claim_json(target: Place, value: Any) -> None:
    """Write JSON where there is none yet; of several writers to an object store the first one's stays."""
    if isinstance(target, Path):
        write_json(target, value)
    else:
        target.write_bytes(json_bytes(value), replace=False)


def read_json(target: Place) -> Any:
    """Read JSON.

    Raises:
        ValueError: if the file is not JSON; names it.
    """
    return parse_json(target.read_bytes(), target)


def sizes(folder: Place) -> dict[str, int]:
    """Name -> bytes of the files directly in a folder, by one listing; empty where there is no folder."""
    if isinstance(folder, ObjectPath):
        return folder.sizes()
    found = {}
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):  # a partial file that was renamed meanwhile
                found[entry.name] = entry.stat().st_size
    return found


def folders(folder: Place) -> list[Place]:
    """The folders directly in a folder, by name; none where there is no folder."""
    if isinstance(folder, ObjectPath):
        return list(folder.folders())
    if not folder.is_dir():
        return []
    return [*sorted(child for child in folder.iterdir() if child.is_dir())]


def size(file: Place) -> int:
    """Bytes of a file, or -1 where there is none."""
    try:
        return file.stat().st_size if isinstance(file, Path) else file.size()
    except FileNotFoundError:
        return -1


def make_directory(folder: Place) -> None:
    """Create a directory, durably; an object store has none to create."""
    if isinstance(folder, Path):
        icrl.files.make_directory(folder)


def sweep_partials(folder: Place) -> int:
    """Remove what killed writers left; a PUT leaves nothing."""
    return icrl.files.sweep_partials(folder) if isinstance(folder, Path) else 0


def count_partials(folder: Place) -> int:
    """How many partial files there are, of killed writers or of some at work."""
    return sum(1 for _ in folder.rglob(f".*{PARTIAL}")) if isinstance(folder, Path) else 0


def require_writable(option: str, target: Place) -> None:
    """Check that a directory can be made or written to; a bucket tells when it is written to.

    Raises:
        ValueError: names the option, the path and what stands in the way.
    """
    if isinstance(target, Path):
        icrl.files.require_writable(option, target)


def require_free(target: Place, needed: int) -> None:
    """Check that the disk of a directory has `needed` bytes free; an object store has no end.

    Raises:
        ValueError: names the path, what is needed and what is free.
    """
    if isinstance(target, Path):
        icrl.files.require_free(target, needed)


def writing(dataset: Place, *, patience: float = 0.0) -> contextlib.AbstractContextManager[None]:
    """Held by whoever writes a dataset: a lock in its directory, which dies with its holder.

    An object store has no such lock, and needs none: whoever writes a recipe first keeps the place (`claim_json`), and
    two writers of one recipe put the same bytes twice.

    Raises:
        ValueError: another process writes it, for longer than `patience` seconds.
    """
    if isinstance(dataset, Path):
        return locked(dataset / LOCK_FILE, patience=patience)
    return contextlib.nullcontext()
