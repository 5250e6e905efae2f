"""`python -m cluster sweep SWEEP.yaml` or `CONFIG key=value,value`: many runs on Ray Tune, and what they show."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from cluster.commands.options import Address
from icrl import cli

Sweep = Annotated[Path, typer.Argument(help="A sweep (see configs/sweeps/), or an experiment.", metavar="SWEEP|CONFIG")]
Values = Annotated[
    list[str] | None,
    typer.Argument(
        help="Values in place of the file's; several values of an experiment make a grid: seed=0,1.",
        metavar="key=value",
    ),
]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Run trials again that failed.")]
AcceptChanges = Annotated[bool, typer.Option("--accept-changes", help="Go on although the sweep has changed.")]


def sweep(
    file: Sweep,
    overrides: Values = None,
    address: Address = None,
    dry_run: cli.DryRun = False,
    retry_failed: RetryFailed = False,
    accept_changes: AcceptChanges = False,
    verbose: cli.Verbose = False,
) -> None:
    """Run every trial of a sweep; the same command resumes."""
    with ExitStack() as held:
        with cli.usage_errors():
            from cluster import sweep_plan

            gpus = None
            if address is not None:
                from cluster.capacity import gpu_count
                from cluster.package import connection

                held.enter_context(connection(address, verbose=verbose))
                gpus = gpu_count()
            plan = sweep_plan.make(file, overrides or (), gpus=gpus, cluster=address is not None)
        cli.say(plan.describe(table=dry_run))
        if plan.changes:
            cli.say("\nthe sweep has changed since it was begun:")
            for line in plan.changes:
                cli.say(f"  {line}")
        if dry_run:
            return
        if plan.changes and not accept_changes:
            typer.echo("error: add --accept-changes to go on, or give the sweep another name", err=True)
            raise typer.Exit(cli.USAGE)
        with cli.usage_errors():
            held.enter_context(plan.directory.lock())
        with cli.work_errors():
            code = sweep_plan.carry_out(plan, held, retry_failed=retry_failed, verbose=verbose)
    raise typer.Exit(code)
