"""`python -m cluster board [DIR]`: TensorBoard for a run, a sweep or all runs, here or on a cluster's head."""

from __future__ import annotations

import shlex
import signal
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from icrl import cli

Directory = Annotated[
    Path | None,
    typer.Argument(help="A run, a sweep or a runs root; by default runs/ below --root.", metavar="DIR"),
]
Root = Annotated[Path, typer.Option("--root", help="The storage root, as storage.root of the configs.")]
Port = Annotated[int, typer.Option("--port", min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")]
Address = Annotated[
    str | None,
    typer.Option("--address", help="A cluster, for example http://head:8265: its head's files, through ssh."),
]
Ssh = Annotated[str | None, typer.Option("--ssh", help="The head as ssh knows it, by default the address's host.")]
Python = Annotated[str, typer.Option("--python", help="The head's Python that has TensorBoard.")]

_HERE = Path()


def board(
    directory: Directory = None,
    root: Root = _HERE,
    port: Port = 6006,
    address: Address = None,
    ssh: Ssh = None,
    python: Python = "python3",
    dry_run: cli.DryRun = False,
) -> None:
    """Start TensorBoard on 127.0.0.1 until Ctrl-C."""
    with cli.usage_errors():
        from cluster.board import remote_host

        host = ssh or (remote_host(address) if address else None)
        given = directory or root.expanduser() / "runs"
    if host is not None:
        _remote(host, given, port, python, dry_run=dry_run)
    else:
        _local(given.expanduser().absolute(), port, dry_run=dry_run)


def _local(directory: Path, port: int, *, dry_run: bool) -> None:
    from cluster.board import entries, require_events, require_port, serving, wait

    with cli.usage_errors():
        require_events(directory)
        if port:
            require_port(port)
    if dry_run:
        for name, path in entries(directory).items():
            cli.say(f"{name}\t{path}")
        return
    signal.signal(signal.SIGTERM, _terminate)
    try:
        with serving(directory, port) as (url, refresh):
            cli.say(f"board of {directory}")
            cli.say(f"{url}   (Ctrl-C ends it)")
            wait(refresh)
    except KeyboardInterrupt:
        cli.say("ended")
    except ValueError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(cli.USAGE) from None


def _remote(host: str, directory: Path, port: int, python: str, *, dry_run: bool) -> None:
    import shutil
    import subprocess

    from cluster.board import HOST, free_port, require_port, tunnel

    with cli.usage_errors():
        if not directory.is_absolute():
            raise ValueError(f"DIR = {directory}: expected an absolute path on {host}, the runs below its storage root")
        if port:
            require_port(port)
        port = port or free_port()
        command = tunnel(host, str(directory), port, python)
        if dry_run:
            cli.say(shlex.join(command))
            return
        if shutil.which("ssh") is None:
            raise ValueError("--address: expected ssh on the PATH, got none; install it, or forward the port yourself")
    cli.say(f"board of {host}:{directory}")
    cli.say(f"http://{HOST}:{port}/   (Ctrl-C ends it)")
    signal.signal(signal.SIGTERM, _terminate)
    ssh = subprocess.Popen(command)
    try:
        code = ssh.wait()
    except KeyboardInterrupt:
        code = 0
    finally:
        ssh.terminate()  # as a signal, which gives it the time to restore the terminal
        ssh.wait()
    if code not in (0, 130):
        typer.echo(f"error: {shlex.join(command)} ended with exit code {code}", err=True)
        raise typer.Exit(cli.FAILED)
    cli.say("ended")


def _terminate(number: int, frame: FrameType | None) -> None:
    raise SystemExit(cli.TERMINATED)
