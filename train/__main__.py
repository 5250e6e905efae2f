"""`python -m train CONFIG [key=value ...]`: pretrain on a dataset, on local processes, without Ray."""

from __future__ import annotations

import sys

import typer

from icrl import cli

app = cli.application("Pretrain a transformer on a dataset; the same command resumes.")


@app.command(context_settings=cli.LENIENT)
def main(
    config: cli.ConfigPath,
    overrides: cli.Overrides = None,
    dry_run: cli.DryRun = False,
    print_config: cli.PrintConfig = False,
) -> None:
    """Pretrain a transformer on a dataset; the same command resumes.

    Spawns train.workers ranks, or is one rank under torchrun or deepspeed.
    """
    with cli.usage_errors():
        loaded = cli.read(config, overrides, print_config)
        from train.launch import check, is_rank, run_rank, spawn
        from train.loop import open_dataset

        plan = check(loaded)
        open_dataset(loaded.config)
    if is_rank():
        raise typer.Exit(run_rank(loaded))
    if dry_run:
        cli.say(plan.describe(loaded.config))
        return
    if plan.finished:
        cli.say(f"already trained: {plan.run.path}")
    else:
        cli.say(plan.describe(loaded.config))
        code = spawn(sys.argv[1:], plan, loaded.config.train.steps)
        if code:
            cli.say(f"stopped with exit code {code}; the same command resumes. Run directory: {plan.run.path}")
            raise typer.Exit(code)
        cli.say(f"trained: {plan.run.path}")
    cli.say(f"next: python -m eval {plan.run.path}")


if __name__ == "__main__":
    app()
