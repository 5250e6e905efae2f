"""Compiles a C++ file once for a machine and loads it.

The cache entry is named by everything that decides its bytes: the source and the headers beside it, the flags, the
compiler and its version, the instruction set. It appears by a rename, so any number of processes may compile at once
and a killed one leaves nothing that another would load or wait for.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from icrl import files
from icrl.native.isa import FLAGS, wanted_isas

_HEADERS = Path(__file__).parent
_COMMON = ("-std=c++17", "-O3", "-shared", "-fPIC", "-pthread", "-fvisibility=hidden", "-fno-exceptions", "-fno-rtti")
# neither lets NaN or the order of sums change, as -ffast-math would
_FLOATS = ("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast")
_QUIET = ("-w",)
_COMPILE_TIMEOUT_S = 300.0
_COMPILERS = ("g++", "clang++", "c++")

_log = logging.getLogger(__name__)


class NativeUnavailableError(Exception):
    """No native code here; the text says why and what would help."""


def library(source: Path, *include: Path, isa: str | None = None) -> ctypes.CDLL:
    """The compiled form of a C++ file; it may include the headers beside it, of `include`, and of this directory.

    `isa` overrides the choice by what the machine runs.

    Raises:
        NativeUnavailableError: if it cannot be had on this machine.
        ValueError: if ICRL_NATIVE_ISA is not one of the machine's.
    """
    outcome = _chosen(source, include, isa, os.environ.get("ICRL_NATIVE"), os.environ.get("ICRL_NATIVE_ISA"))
    if isinstance(outcome, str):
        raise NativeUnavailableError(outcome)
    return outcome


def refusal(source: Path, *include: Path) -> str | None:
    """Why `library` cannot have this, None when it can; logs the reason the first time.

    Raises:
        ValueError: if ICRL_NATIVE_ISA is not one of the machine's.
    """
    outcome = _chosen(source, include, None, os.environ.get("ICRL_NATIVE"), os.environ.get("ICRL_NATIVE_ISA"))
    if isinstance(outcome, str):
        _log_once(source.name, outcome)
        return outcome
    return None


def cache_directory() -> Path:
    """Where compiled kernels lie: below ICRL_CACHE_DIR, else the user's cache.

    Raises:
        NativeUnavailableError: the user has no home either.
    """
    if chosen := os.environ.get("ICRL_CACHE_DIR"):
        return Path(chosen) / "native"
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111 - no error without a home
    if base.startswith("~"):
        raise NativeUnavailableError("no home directory to keep compiled code in: set ICRL_CACHE_DIR")
    return Path(base) / "icrl" / "native"


@functools.cache
def _log_once(name: str, reason: str) -> None:
    _log.warning("%s is not used: %s", name, reason)


@functools.cache
def _chosen(
    source: Path, include: tuple[Path, ...], isa: str | None, switch: str | None, forced: str | None
) -> ctypes.CDLL | str:
    """The library of the best instruction set that compiles, or why there is none. Asked at each call of a kernel."""
    if switch == "0":
        return "ICRL_NATIVE = 0 turns native code off"
    try:
        cache = str(cache_directory())
    except NativeUnavailableError as error:
        return str(error)
    failures = []
    for candidate in (isa,) if isa else wanted_isas(forced):
        outcome = _built(source, include, candidate, os.environ.get("CXX"), cache)
        if isinstance(outcome, ctypes.CDLL):
            return outcome
        failures.append(outcome)
    return failures[0]


@functools.cache
def _built(source: Path, include: tuple[Path, ...], isa: str, cxx: str | None, cache: str) -> ctypes.CDLL | str:
    """The library, or why there is none."""
    try:
        compiler, version = _compiler(cxx)
        directories = (source.parent, *include, _HEADERS)
        flags = (*_COMMON, *_FLOATS, *_QUIET, *FLAGS[isa], *(f"-I{directory}" for directory in directories))
        headers = sorted({header for directory in directories for header in directory.glob("*.h")})
        identity = [version, *_COMMON, *_FLOATS, *_QUIET, *FLAGS[isa]]
        digest = hashlib.sha256("\0".join(identity).encode())
        for path in (source, *headers):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
        target = _private(Path(cache)) / f"{source.stem}-{isa}-{digest.hexdigest()[:24]}.so"
        if target.exists():
            try:
                return ctypes.CDLL(str(target))
            except OSError:  # an entry that a full disk or a power cut has spoilt: made anew below
                pass
        _compile([*compiler, *flags, str(source)], target)
        return ctypes.CDLL(str(target))
    except NativeUnavailableError as error:
        return str(error)
    except OSError as error:
        return f"{source.name}: {error}; ICRL_CACHE_DIR chooses another place for compiled code"


@functools.cache
def _compiler(cxx: str | None) -> tuple[list[str], str]:
    """The command of the compiler and the text that tells it from others."""
    wanted = [cxx.split()] if cxx else [[name] for name in _COMPILERS]
    found = next((command for command in wanted if command and shutil.which(command[0])), None)
    if found is None:
        names = f"CXX = {cxx}" if cxx else " nor ".join(_COMPILERS)
        raise NativeUnavailableError(f"no C++ compiler ({names} is not on the PATH): install g++ or set CXX")
    version = subprocess.run([*found, "--version"], capture_output=True, text=True, check=False)
    if version.returncode:
        raise NativeUnavailableError(f"{' '.join(found)} --version failed: {version.stderr.strip()[:500]}; set CXX")
    return found, f"{found}\n{version.stdout}"


def _private(directory: Path) -> Path:
    """The cache directory, made if need be; code that is loaded must be the user's own."""
    if not directory.exists():
        files.make_directory(directory.parent)
        directory.mkdir(mode=0o700, exist_ok=True)
    status = directory.stat()
    if status.st_uid != os.getuid():
        raise NativeUnavailableError(f"{directory} belongs to another user (uid {status.st_uid}): set ICRL_CACHE_DIR")
    if status.st_mode & 0o022:
        raise NativeUnavailableError(f"{directory} can be written to by others: chmod 700 it, or set ICRL_CACHE_DIR")
    return directory


def _compile(command: list[str], target: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="icrl-native-") as scratch:
        made = Path(scratch) / target.name
        try:
            done = subprocess.run(
                [*command, "-o", str(made)], capture_output=True, text=True, check=False, timeout=_COMPILE_TIMEOUT_S
            )
        except subprocess.TimeoutExpired:
            raise NativeUnavailableError(f"{command[0]} took more than {_COMPILE_TIMEOUT_S:.0f} s") from None
        if done.returncode:
            raise NativeUnavailableError(f"{' '.join(command)} failed: {done.stderr.strip()[:2000]}")
        files.atomic_write(target, made.read_bytes())
