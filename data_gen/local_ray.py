"""A Ray of this command's own: a private temporary directory, 127.0.0.1, a token, and gone when the command ends."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import signal
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from data_gen.plan import Plan
from icrl.cli import TERMINATED
from icrl.config import Config
from icrl.files import locked

_TMP = Path("/tmp")
"""Short: the paths of Ray's sockets must stay under 108 bytes."""
_PREFIX = "icrl-ray-"
_OBJECT_STORE_BYTES = 150_000_000
"""Trajectories never pass through it; this is room for Ray's own messages."""

QUIET = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_DEDUP_LOGS": "1",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray's workers would run at niceness 15: they are the work itself here, not its background
    "RAY_worker_niceness": "0",
    "TORCHDYNAMO_DISABLE": "1",
}
"""Read by Ray in the driver and handed on to its workers; the health check's default of 2 s would delay each report."""


@contextlib.contextmanager
def local_ray(*, at_least: int = 1, verbose: bool = False, logs: Path | None = None) -> Iterator[None]:
    """Start Ray on this machine, and stop it when the block ends, also by Ctrl-C or SIGTERM.

    Ray counts with the machine's CPUs, or `at_least` that many where there are fewer. What its workers printed is kept
    in `logs`, when that directory exists at the end.
    """
    _sweep_leftovers()
    private = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_TMP))
    directory = private / "r"  # Ray opens it to everybody; what it lies in stays closed
    token = private / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    checkout = str(Path(__file__).resolve().parent.parent)
    python_path = [checkout, *filter(None, [os.environ.get("PYTHONPATH")])]
    settings = {
        **QUIET,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        # nobody takes this machine away: each training is spared a process that waits for the notice
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
        # without it Ray puts the machine's outward address in place of 127.0.0.1 and listens on every interface
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "PYTHONPATH": os.pathsep.join(python_path),
    }
    with locked(private / "lock"), _environment(settings), terminating():
        import ray

        try:
            ray.init(
                address="local",
                num_cpus=max(at_least, os.cpu_count() or 1),
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE_BYTES,
                logging_level=logging.INFO if verbose else logging.ERROR,
                log_to_driver=verbose,
                _temp_dir=str(directory),
                _node_ip_address="127.0.0.1",
            )
            yield
        finally:
            ray.shutdown()
            if logs is not None and logs.is_dir():
                _keep_logs(directory, logs / "ray")
            shutil.rmtree(private, ignore_errors=True)


def _sweep_leftovers() -> None:
    """Remove the directories of this user's commands that were killed: nobody holds their locks."""
    for path in _TMP.glob(f"{_PREFIX}*/lock"):
        with contextlib.suppress(ValueError, OSError):
            status = path.parent.lstat()  # anybody can make such a name there, or a link of it
            if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid():
                with locked(path):
                    shutil.rmtree(path.parent, ignore_errors=True)


def _keep_logs(directory: Path, target: Path) -> None:
    """Copy what workers and the training controller wrote, in place of what an earlier session left."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    logs = [*directory.glob("session_2*/logs/worker-*"), *directory.glob("session_2*/logs/train/*")]
    for path in logs:
        # lines that begin with a colon are Ray's own marks
        if any(line.strip() and not line.startswith(b":") for line in path.read_bytes().splitlines()):
            shutil.copyfile(path, target / path.name)


def ray_for_actors(config: Config, plan: Plan) -> contextlib.AbstractContextManager[None]:
    """A local Ray where generating needs one."""
    if config.dataset.actors == 0 or not plan.tasks:
        return contextlib.nullcontext()
    return local_ray()


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def terminating() -> Iterator[None]:
    """SIGTERM ends the block as an exception would, so that Ray is stopped; exit code 143."""

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(TERMINATED)

    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
