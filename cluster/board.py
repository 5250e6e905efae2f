"""TensorBoard for a run, a sweep or a whole runs root, here or on another machine through ssh.

What TensorBoard is given is a directory of links, each named so that it reads well on the board: a run by its
directory's name, a trial of a sweep by its number and what varies. Nothing looks a run up by these names.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import re
import shlex
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

from cluster.runs import walk
from icrl.board import CHOSEN_HPARAMS, event_files, settle
from icrl.files import read_json
from icrl.hparams import short_names
from icrl.masking import mask
from icrl.run_dir import RunDirectory

HOST = "127.0.0.1"
_TRIAL = re.compile(r"(\d+)-[0-9a-f]{8}")
_LONGEST = 60
_REFRESH_S = 3.0


def entries(directory: Path) -> dict[str, Path]:
    """Name on the board -> directory with event files (or a run that will have some), at and below `directory`."""
    found: dict[str, Path] = {}
    for path in walk(directory):
        parts = [part for part in path.relative_to(directory).parts if part != "trials"]
        name = "/".join([*parts[:-1], _readable(path)])
        # two trials may vary in a place that is cut off
        found[name if name not in found else "/".join([*parts[:-1], path.name])] = path
    return found


def require_events(directory: Path) -> None:
    """Check that there is something to show.

    Raises:
        ValueError: the directory does not exist, or no run at or below it has event files.
    """
    if not directory.is_dir():
        raise ValueError(f"DIR = {directory}: expected a run, a sweep or a runs root, got nothing there")
    if not any(event_files(path) for path in entries(directory).values()):
        raise ValueError(
            f"DIR = {directory}: expected event files of at least one run at or below it, got none; "
            "train one with: python -m cluster run configs/demo.yaml"
        )


@contextlib.contextmanager
def serving(directory: Path, port: int) -> Iterator[tuple[str, Callable[[], None]]]:
    """TensorBoard on 127.0.0.1 for as long as the block runs; yields its URL, and what takes in runs that are new.

    Port 0 takes a free one. Runs that ended without closing their board are closed first.

    Raises:
        ValueError: the port is taken.
    """
    from tensorboard import program

    for path in entries(directory).values():
        # a damaged run, whatever is wrong with it, does not keep the others from being shown
        with contextlib.suppress(Exception):
            if (path / "run.json").is_file():
                settle(RunDirectory(path))
    port = port or free_port()
    require_port(port)
    with tempfile.TemporaryDirectory(prefix="icrl-board-") as view:
        refresh(directory, Path(view))
        board = program.TensorBoard()
        arguments = [
            "--logdir",
            view,
            "--host",
            HOST,
            "--port",
            str(port),
            "--window_title",
            directory.name,
            *_loader(),
        ]
        board.configure(argv=["tensorboard", *arguments])
        try:
            url = board.launch()
        except program.TensorBoardServerException as error:
            raise ValueError(f"--port {port}: {error}") from error
        yield url, lambda: refresh(directory, Path(view))


def wait(refresh_view: Callable[[], None]) -> None:
    """Keep the view up to date until a signal."""
    while True:
        time.sleep(_REFRESH_S)
        with contextlib.suppress(OSError):  # a run that was removed meanwhile; the next time it is gone
            refresh_view()


def refresh(directory: Path, view: Path) -> None:
    """Make the links in `view` those of the runs there are now."""
    wanted = {view / name: target.absolute() for name, target in entries(directory).items()}
    for link in [path for path in view.rglob("*") if path.is_symlink()]:
        if wanted.get(link) != link.readlink():
            link.unlink()
    for link, target in wanted.items():
        if not link.is_symlink():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(target, target_is_directory=True)


def require_port(port: int) -> None:
    """Check that nobody listens on a port of this machine.

    Raises:
        ValueError: somebody does.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            raise ValueError(f"--port {port}: something listens there already; --port 0 takes a free one") from None


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def remote_host(address: str) -> str | None:
    """The machine of a cluster's address; None for this one.

    Raises:
        ValueError: the address names no machine.
    """
    parts = urlsplit(address if "://" in address else f"//{address}")
    if not parts.hostname:
        raise ValueError(f"--address {address}: expected a cluster's address, for example http://head:8265")
    with contextlib.suppress(ValueError):
        return None if ipaddress.ip_address(parts.hostname).is_loopback else parts.hostname
    return None if parts.hostname == "localhost" else parts.hostname


def tunnel(host: str, directory: str, port: int, python: str) -> list[str]:
    """The command that starts TensorBoard on another machine and brings its port here; it ends with the connection.

    -tt gives it a terminal, whose end TensorBoard does not outlive; a plain `ssh -N -L` would leave it behind.
    """
    options = ["--logdir", ".", "--host", HOST, "--port", str(port)]
    remote = f"cd {shlex.quote(directory)} && exec {shlex.join([python, '-m', 'tensorboard.main', *options])}"
    forward = f"{HOST}:{port}:{HOST}:{port}"
    return ["ssh", "-tt", "-o", "ExitOnForwardFailure=yes", "-L", forward, host, remote]


def _loader() -> list[str]:
    """TensorBoard's fast loader, where it is installed; asked for by name it does not announce itself.

    The other one does not follow an event file that is written anew.
    """
    from tensorboard.data import server_ingester

    try:
        server_ingester.get_server_binary()
    except server_ingester.NoDataServerError:
        return []
    return ["--load_fast", "true"]


def _readable(path: Path) -> str:
    """A run's name; for a sweep's trial its number and what varies: `0007 embed_dim=16 seed=0`."""
    chosen = path / CHOSEN_HPARAMS
    trial = _TRIAL.fullmatch(path.name)
    if trial is None or not chosen.is_file():
        return path.name
    try:
        values = mask(dict(read_json(chosen)))
    except (ValueError, TypeError, OSError):
        return path.name
    names = short_names(list(values))
    text = " ".join(
        f"{names[key]}={value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items()
    )
    return re.sub(r"[^\w.=,+-]+", " ", f"{trial[1]} {text}")[:_LONGEST].strip()
