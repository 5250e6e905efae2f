"""`python -m cluster run CONFIG`: the whole pipeline as one job."""

from __future__ import annotations

from contextlib import ExitStack, nullcontext

import typer

from cluster.commands.options import Address
from icrl import cli
from icrl.config import Loaded


def run(
    config: cli.ConfigPath,
    overrides: cli.Overrides = None,
    address: Address = None,
    dry_run: cli.DryRun = False,
    print_config: cli.PrintConfig = False,
    verbose: cli.Verbose = False,
) -> None:
    """Generate, pretrain and evaluate; the same command resumes."""
    with cli.usage_errors():
        loaded = cli.read(config, overrides, print_config)
        from icrl.mirror import require_no_mirror, working

        if address is not None:
            require_no_mirror(loaded.config, "a cluster, whose nodes need not share a disk")
    with nullcontext() if dry_run else cli.session(working(loaded.config)):
        _run(loaded, address, dry_run=dry_run, verbose=verbose)


def _run(loaded: Loaded, address: str | None, *, dry_run: bool, verbose: bool) -> None:
    with ExitStack() as stack:
        with cli.usage_errors():
            from cluster.pipeline import check_all, run_pipeline

            if address is None:
                planned = check_all(loaded)
            else:
                from cluster.capacity import gpu_count, require_capacity
                from cluster.package import connection

                stack.enter_context(connection(address, verbose=verbose))
                planned = check_all(loaded, gpu_count())
                require_capacity(loaded, planned.train)
        cli.say(planned.describe(loaded))
        if dry_run:
            return
        from data_gen.local_ray import local_ray
        from icrl.progress import Progress
        from icrl.run_dir import RunDirectory

        with cli.usage_errors():
            work = RunDirectory.open(loaded)
            stack.enter_context(work.lock())
        path = work.path
        workers = planned.train.workers * loaded.config.train.threads
        idle = planned.dataset.complete and planned.train.finished
        try:
            if address is None and not idle:
                stack.enter_context(local_ray(at_least=workers, verbose=verbose, logs=work.logs))
            with cli.work_errors(), Progress() as progress:
                code = run_pipeline(loaded, planned, work, progress)
        except typer.Exit as failed:
            code = failed.exit_code
        except KeyboardInterrupt:
            code = cli.INTERRUPTED
        except SystemExit as stop:  # SIGTERM outside of training
            code = int(stop.code or 0)
            cli.say("stopped; the same command resumes")
    if code not in (0, cli.INTERRUPTED, cli.TERMINATED):
        from icrl.board import settle

        settle(work)
    figure = path / "figures" / "regret.png"
    if figure.exists():
        cli.say(f"figure          {figure}")
    if (path / "metrics.jsonl").exists():
        cli.say(f"board           tensorboard --logdir {path}")
    cli.say(f"next            python -m eval {path} eval.environments=2000" if code == 0 else f"run directory   {path}")
    raise typer.Exit(code)
