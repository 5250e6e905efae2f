"""The checkout as one zip file for the nodes of a cluster: what it holds, how large that is, and what never travels.

Equal contents give equal bytes, so that Ray uploads a checkout once.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from icrl.files import size_text

CHECKOUT = Path(__file__).resolve().parent.parent
LIMIT = 100 * 2**20
"""Bytes before compression; every node unpacks them."""

_AT_THE_TOP = frozenset({"data", "runs", "build"})
_ANYWHERE = (
    ".git", ".venv", "venv", "node_modules", "__pycache__", ".*_cache", ".hypothesis", "*.egg-info", "*.pyc",
    "*.partial", ".DS_Store",
    ".env", ".env.*", "*.pem", "*.key", "*.p12", "*.pfx", "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", "*token",
    "*token*.txt", "credentials", "*credentials*.json", ".netrc", ".git-credentials", ".pypirc", ".npmrc", ".aws",
    ".ssh", ".gnupg", ".kube", ".docker",
)  # fmt: skip
"""Histories, environments, caches and secrets."""
_NAMED = 5
"""How many of the largest entries a refusal names."""
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Package:
    """The files of a checkout that travel."""

    root: Path
    files: tuple[Path, ...]
    """Relative to the root, sorted."""
    bytes: int

    @staticmethod
    def of(root: Path = CHECKOUT, exclude: Sequence[str] = (), limit: int = LIMIT) -> Package:
        """What of `root` travels; `exclude` are further names or paths to leave out, with wildcards.

        Raises:
            ValueError: it is larger than `limit`; names what is large in it.
        """
        files = tuple(sorted(_files(root, exclude)))
        sizes = {file: (root / file).stat().st_size for file in files}
        package = Package(root, files, sum(sizes.values()))
        if package.bytes > limit:
            raise ValueError(_too_large(package, sizes, limit))
        return package

    def write(self, target: Path, extra: dict[str, str] | None = None) -> Path:
        """The zip file; `extra` are further files of it, by their path."""
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
            for file in self.files:
                _add(archive, file.as_posix(), (self.root / file).read_bytes())
            for name, text in sorted((extra or {}).items()):
                _add(archive, name, text.encode())
        return target

    def describe(self) -> str:
        return f"{len(self.files)} files of {self.root}, {size_text(self.bytes)}"


@contextlib.contextmanager
def connection(address: str, *, verbose: bool = False) -> Iterator[None]:
    """The Ray at `address` while the block runs, with this checkout on its nodes.

    Raises:
        ValueError: no cluster answers there, or the checkout is too large to travel.
    """
    from data_gen.connected_ray import connected, inside_job

    with tempfile.TemporaryDirectory(prefix="icrl-package-") as scratch:
        runtime_env = {}
        if not inside_job():
            runtime_env["working_dir"] = str(Package.of().write(Path(scratch) / "package.zip"))
        with connected(address, runtime_env, verbose=verbose):
            yield


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    entry = zipfile.ZipInfo(name, date_time=_EPOCH)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o644 << 16
    archive.writestr(entry, content)


def _files(root: Path, exclude: Sequence[str]) -> Iterator[Path]:
    for directory, folders, names in os.walk(root):
        here = Path(directory).relative_to(root)
        folders[:] = [name for name in folders if _travels(here / name, exclude)]
        for name in names:
            if _travels(here / name, exclude) and (root / here / name).is_file():
                yield here / name


def _travels(path: Path, exclude: Sequence[str]) -> bool:
    if len(path.parts) == 1 and path.name in _AT_THE_TOP:
        return False
    if any(fnmatch.fnmatchcase(path.name, pattern) for pattern in _ANYWHERE):
        return False
    return not any(fnmatch.fnmatchcase(text, pattern) for pattern in exclude for text in (path.name, path.as_posix()))


def _too_large(package: Package, sizes: dict[Path, int], limit: int) -> str:
    entries: Counter[str] = Counter()
    for file, size in sizes.items():
        folder = "/".join(file.parts[:-1][:2])
        entries[f"{folder}/" if folder else file.name] += size
    largest = "\n".join(f"  {size_text(size):>9}  {name}" for name, size in entries.most_common(_NAMED))
    first = entries.most_common(1)[0][0].rstrip("/")
    return (
        f"the checkout {package.root} is {size_text(package.bytes)}, expected at most {size_text(limit)}; "
        f"the largest:\n{largest}\nmove what is not code out of it, or leave it out with --exclude {first}"
    )
