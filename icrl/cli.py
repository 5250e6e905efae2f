"""What every command shares: reading a config, one clear message for a usage error, exit codes.

Exit codes: 0 done, 1 failed, 2 bad usage or config, 130 stopped by Ctrl-C, 143 stopped by SIGTERM after a checkpoint.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperGroup

from icrl.config import ConfigError, Loaded, StorageConfig, dump, load

Opened = TypeVar("Opened")

FAILED = 1
USAGE = 2
INTERRUPTED = 130
TERMINATED = 143

ConfigPath = Annotated[Path, typer.Argument(help="Experiment, a YAML file (see configs/).", metavar="CONFIG")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Values in place of the file's, for example train.steps=1000.", metavar="key=value"),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything and print the plan; write nothing.")]
PrintConfig = Annotated[bool, typer.Option("--print-config", help="Print the resolved config and stop.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show the libraries' own logs.")]


def application(help_text: str) -> typer.Typer:
    """A command line whose `key=value` arguments may also be written `--key=value`."""
    return typer.Typer(
        help=help_text,
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def with_default(default: str) -> type[TyperGroup]:
    """Commands of which `default` needs no name: it is meant where the first word is no command, but a config."""

    class Commands(TyperGroup):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            if args and args[0] not in {*self.commands, *ctx.help_option_names}:
                args = [default, *args]
            return super().parse_args(ctx, args)

    return Commands


LENIENT: dict[str, Any] = {"ignore_unknown_options": True}
"""Context of commands that take overrides."""


def say(text: str = "") -> None:
    """A line for the user."""
    typer.echo(text)


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
    """The checks before any work: what a user can cause ends here with its message and exit code 2."""
    try:
        yield
    except ConfigError as error:
        count = len(error.problems)
        typer.echo(f"error: {count} problem{'s' if count > 1 else ''} in the config", err=True)
        for problem in error.problems:
            typer.echo(f"  {problem}", err=True)
        raise typer.Exit(USAGE) from None
    except (ValueError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(USAGE) from None


def read(path: Path, overrides: Sequence[str] | None, print_config: bool = False) -> Loaded:
    """Load a config for a command; `--print-config` ends here."""
    unknown = [entry for entry in overrides or () if entry.startswith("-") and "=" not in entry]
    if unknown:
        raise ValueError(f"unknown option {unknown[0]}: see --help; a value is changed with key=value")
    loaded = absolute_root(load(path, overrides or ()))
    if print_config:
        typer.echo(dump(loaded.config), nl=False)
        raise typer.Exit(0)
    return loaded


def absolute_root(loaded: Loaded) -> Loaded:
    """With `storage.root` taken against this process's directory: Ray's workers have others."""
    root = StorageConfig(str(Path(loaded.config.storage.root).expanduser().absolute()))
    return dataclasses.replace(loaded, config=dataclasses.replace(loaded.config, storage=root))


@contextlib.contextmanager
def work_errors() -> Iterator[None]:
    """The work itself: what stops it ends in one line and exit code 1, Ctrl-C in 130."""
    try:
        yield
    except (ValueError, OSError, RuntimeError) as error:
        typer.echo(f"failed: {error}", err=True)
        raise typer.Exit(FAILED) from None
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command resumes", err=True)
        raise typer.Exit(INTERRUPTED) from None


@contextlib.contextmanager
def session(opened: contextlib.AbstractContextManager[Opened]) -> Iterator[Opened]:
    """Work on a run that may lie in an object store (`icrl.mirror`).

    What stands against it ends in exit code 2; what its end meets with, such as a store that went away, in 1.
    """
    with contextlib.ExitStack() as stack:
        with usage_errors():
            work = stack.enter_context(opened)
        try:
            yield work
        finally:
            try:
                stack.close()
            except (ValueError, OSError) as error:
                typer.echo(f"failed: {error}", err=True)
                raise typer.Exit(FAILED) from None


def command(module: str, path: Path, overrides: Sequence[str] | None) -> str:
    """A command line to copy: the same config and overrides for another module."""
    return shlex.join(["python", "-m", *module.split(), str(path), *(overrides or ())])
