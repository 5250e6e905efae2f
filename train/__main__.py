"""`python -m train CONFIG [key=value ...]`: pretrain on a dataset, on local processes, without Ray; export weights."""

from __future__ import annotations

import sys
from contextlib import ExitStack, nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

from icrl import cli
from icrl.config import Loaded

if TYPE_CHECKING:
    from train.launch import StopFlag

app = cli.application("Pretrain a transformer on a dataset; the same command resumes.")


@app.callback(cls=cli.with_default("pretrain"), subcommand_metavar="CONFIG [key=value]... | COMMAND [ARGS]...")
def commands() -> None:
    """Pretrain a transformer on a dataset; the same command resumes.

    CONFIG [key=value]... alone is the command pretrain.
    """


@app.command("pretrain", context_settings=cli.LENIENT)
def pretrain_command(
    config: cli.ConfigPath,
    overrides: cli.Overrides = None,
    dry_run: cli.DryRun = False,
    print_config: cli.PrintConfig = False,
) -> None:
    """Pretrain a transformer on a dataset; the same command resumes.

    Spawns train.workers ranks, or is one rank under torchrun or deepspeed.
    """
    from train.launch import StopFlag, is_rank

    stop = StopFlag() if is_rank() else None  # before all else: a rank may be told to stop while it starts
    with cli.usage_errors():
        loaded = cli.read(config, overrides, print_config)
        from icrl.mirror import working
    with nullcontext() if dry_run or is_rank() else cli.session(working(loaded.config)):
        _pretrain(loaded, stop, dry_run=dry_run)


def _pretrain(loaded: Loaded, stop: StopFlag | None, *, dry_run: bool) -> None:
    code = 0
    with ExitStack() as stack:
        with cli.usage_errors():
            from icrl.board import settle
            from icrl.run_dir import RunDirectory
            from train.launch import check, run_rank, spawn, speaks
            from train.loop import open_dataset

            plan = check(loaded)
            open_dataset(loaded.config)
            if not dry_run and speaks():  # under a launcher its first rank
                stack.enter_context(RunDirectory.open(loaded).lock())
        if speaks():
            already = f"already trained: {plan.run.path}"
            cli.say(already if plan.finished else plan.describe(loaded.config))
        if dry_run:
            return
        if plan.finished:
            plan.run.settle()
        elif stop is not None:
            code = run_rank(loaded, stop)
        else:
            code = spawn(sys.argv[1:], plan, loaded.config.train.steps)
            if code in (cli.TERMINATED, cli.INTERRUPTED):
                plan.run.settle_stopped()
            elif code:
                plan.run.settle_failed(f"a worker ended with exit code {code}")
    if speaks():
        if code:
            state = plan.run.status()["state"]
            settle(plan.run)
            hint = "see train.optimizer.lr and diverged.json" if state == "diverged" else "the same command resumes"
            cli.say(f"{state}, exit code {code}; {hint}. Run directory: {plan.run.path}")
        else:
            cli.say(f"trained: {plan.run.path}")
            cli.say(f"next: python -m eval {plan.run.path}")
    raise typer.Exit(code)


@app.command("export")
def export_command(
    run_dir: Annotated[str, typer.Argument(help="Run directory, or s3://bucket/prefix of one.", metavar="RUN_DIR")],
    to: Annotated[str, typer.Option("--to", help="Directory for the model, or s3://bucket/prefix.", metavar="PLACE")],
    step: Annotated[int | None, typer.Option("--step", help="Of which checkpoint; default: the newest.")] = None,
) -> None:
    """Write the weights of a checkpoint as a model that icrl.from_pretrained reads."""
    with cli.usage_errors():
        from icrl.mirror import working_on
        from train.export import export
    with cli.session(working_on(run_dir)) as run, cli.usage_errors():
        exported = export(run, to, step)
    cli.say(f"exported: step {exported} to {to}")
    cli.say(f"next: icrl.from_pretrained({to!r})")


if __name__ == "__main__":
    app()
