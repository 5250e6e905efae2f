"""The run directory: layout, identity and status. The one truth about a run, whoever hosts it.

run.json config.yaml resolved.yaml env.json status.json metrics.jsonl events.out.tfevents.* checkpoints/step-*/
model.safetensors model.json results.json figures/ logs/ hparams.json
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from icrl.config import OBJECT_SCHEME, Config, Loaded, config_hash, difference, dump, from_dict, identity
from icrl.files import atomic_write, locked, read_json, require_writable, sha256_bytes, write_json

State = Literal["created", "training", "trained", "stopped", "failed", "diverged", "done"]

_PACKAGES = ("torch", "deepspeed", "ray", "zarr", "numpy", "numba", "omegaconf", "tensorboardX")
COMMIT_VARIABLE = "ICRL_COMMIT"
"""Environment variable with the commit of a packaged checkout, which has no history of its own."""
_OWN_FILES = frozenset({"run.json", "config.yaml", "resolved.yaml", "env.json", "logs", ".lock", ".training.lock"})


class RunConflictError(ValueError):
    """The directory belongs to something else: another config, or no run at all."""


def default_path(config: Config) -> Path:
    """Where the run lies: `run.dir`, or runs/<name>-<8 hex of the config>, under the storage root.

    Of a run in an object store it is the directory of its mirror (`icrl.mirror`).
    """
    name = config.run.dir or f"runs/{config.name}-{config_hash(config)}"
    if name.startswith(OBJECT_SCHEME):
        name = f"runs/{mirror_name(name)}"
    return Path(config.storage.root).expanduser().absolute() / Path(name).expanduser()


def mirror_name(url: str) -> str:
    """What the mirror of s3://bucket/prefix is called: the prefix's last part and 8 hex of the URL."""
    url = url.removesuffix("/")
    return f"{url.rpartition('/')[2]}-{sha256_bytes(url.encode())[:8]}"


def environment() -> dict[str, Any]:
    """Provenance: library versions, commit, machine. Never part of an identity."""
    versions = {}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "packages": versions,
        "commit": commit(),
    }


def commit() -> str | None:
    """The checkout's commit, with `+changes` where it has some; outside a checkout `COMMIT_VARIABLE`, or None."""
    here = Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, check=False)
        except FileNotFoundError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    head = git("rev-parse", "HEAD")
    if head is None:
        return os.environ.get(COMMIT_VARIABLE) or None
    return head + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")


@dataclass(frozen=True)
class RunDirectory:
    """Paths and records of one run."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    @property
    def results(self) -> Path:
        return self.path / "results.json"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @staticmethod
    def check(loaded: Loaded) -> RunDirectory:
        """The directory the run will use, without touching it.

        Raises:
            RunConflictError: it holds a run of another config (the difference is in the message) or other files. What
                `Config.may_change` names may differ: named by `run.dir`, a run goes on under it.
        """
        run = RunDirectory(default_path(loaded.config))
        try:
            require_writable("run.dir", run.path)
        except ValueError as error:
            raise RunConflictError(str(error)) from None
        if not run.path.exists():
            return run
        if not run.path.is_dir():
            raise RunConflictError(f"run.dir = {run.path}: expected a directory, got a file; choose another run.dir")
        if not (run.path / "run.json").exists():
            strangers = sorted(entry.name for entry in run.path.iterdir() if entry.name not in _OWN_FILES)
            strangers = [name for name in strangers if not (name.endswith(".partial") or name.startswith(".mirror."))]
            if strangers:
                listed = ", ".join(strangers[:5])
                raise RunConflictError(
                    f"run.dir = {run.path}: expected an empty directory or a run, got {listed}; choose another run.dir"
                )
            return run
        changes = [
            change
            for change in difference(identity(run.config()), identity(loaded.config))
            if change.partition(":")[0] not in loaded.config.may_change
        ]
        if changes:
            raise RunConflictError(
                f"run.dir = {run.path}: holds a run of another config:\n  "
                + "\n  ".join(changes)
                + "\nchoose another run.dir (null names one after the config), or undo the change to resume"
            )
        return run

    @staticmethod
    def open(loaded: Loaded) -> RunDirectory:
        """Create the directory, or open it to resume; `run.json` is written last.

        Raises:
            RunConflictError: as `check`.
        """
        run = RunDirectory.check(loaded)
        run.logs.mkdir(parents=True, exist_ok=True)
        if not (run.path / "run.json").exists():
            atomic_write(run.path / "config.yaml", loaded.given.encode())
            atomic_write(run.path / "resolved.yaml", dump(loaded.config).encode())
            write_json(run.path / "env.json", environment())
            record = {
                "name": loaded.config.name,
                "config_hash": config_hash(loaded.config),
                "config": str(loaded.path),
                "overrides": list(loaded.overrides),
                "created": time.time(),
            }
            write_json(run.path / "run.json", record)
        return run

    @staticmethod
    def existing(path: Path) -> RunDirectory:
        """The run at `path`.

        Raises:
            RunConflictError: there is none.
        """
        run = RunDirectory(path.absolute())
        if not (run.path / "run.json").exists():
            raise RunConflictError(
                f"RUN_DIR = {path}: expected a run directory (with run.json), got "
                + ("a directory without one" if path.is_dir() else "nothing there")
                + "; train one with: python -m train CONFIG"
            )
        return run

    def config(self) -> Config:
        """The resolved config the run was made with."""
        resolved = self.path / "resolved.yaml"
        try:
            values = yaml.safe_load(resolved.read_text())
        except (OSError, yaml.YAMLError) as error:
            raise RunConflictError(f"{resolved} cannot be read ({error}): the run directory is damaged") from None
        if not isinstance(values, dict):
            raise RunConflictError(f"{resolved} holds no config: the run directory is damaged")
        return from_dict(values, str(resolved))

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Held by the command that works on the run; a second one is refused with a ValueError."""
        return locked(self.path / ".lock")

    def training_lock(self, patience: float = 60) -> contextlib.AbstractContextManager[None]:
        """Held by the rank that writes checkpoints. Waits some seconds for one whose command was killed to end."""
        return locked(self.path / ".training.lock", patience=patience)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Held while a run is changed on which nobody works: no command, and no ranks whose command is gone.

        Raises:
            ValueError: somebody does; names the process.
        """
        with self.lock(), self.training_lock(patience=0):
            yield

    def set_status(self, state: State, **details: Any) -> None:
        """Replace `status.json`."""
        write_json(self.path / "status.json", {"state": state, "time": time.time(), **details})

    def status(self) -> dict[str, Any]:
        """`status.json`, or state "created" before there is one."""
        path = self.path / "status.json"
        return read_json(path) if path.exists() else {"state": "created"}

    def request_stop(self, reason: str = "SIGTERM") -> None:
        """Ask whoever trains here to stop after a checkpoint."""
        write_json(self.path / "stop.json", {"reason": reason})

    def stop_requested(self) -> str | None:
        """The reason of a stop request, or None."""
        path = self.path / "stop.json"
        return str(read_json(path)["reason"]) if path.exists() else None

    def clear_stop_request(self) -> None:
        """Forget a stop request."""
        (self.path / "stop.json").unlink(missing_ok=True)

    @contextlib.contextmanager
    def failing(self) -> Iterator[None]:
        """Marks the run failed, with the error's first line, when the body raises and left no status that says more."""
        before = self.status()
        try:
            yield
        except Exception as error:
            now = self.status()
            if now["state"] != "diverged" and (now["state"] != "failed" or now == before):
                first = (str(error).splitlines() or [""])[0]
                with contextlib.suppress(OSError):  # on a full disk the status stays what it was
                    self.set_status("failed", error=f"{type(error).__name__}: {first}")
            raise

    def settle_failed(self, reason: str) -> None:
        """Set right the status of a run whose training ended without saying why."""
        if self.status()["state"] in ("created", "training"):
            self.set_status("failed", error=reason)

    def settle_stopped(self) -> None:
        """Set right the status of a run that was told to stop before it trained."""
        if self.status()["state"] in ("created", "training"):
            self.set_status("stopped")

    def settle(self) -> None:
        """Set right the status of a run whose training ended in a kill after its weights were written."""
        if self.status()["state"] in ("created", "training"):
            self.set_status("trained")
