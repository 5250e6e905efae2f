"""`python -m cluster run CONFIG`: the whole pipeline as one job."""

from __future__ import annotations

from contextlib import nullcontext

import typer

from icrl import cli


def run(
    config: cli.ConfigPath,
    overrides: cli.Overrides = None,
    dry_run: cli.DryRun = False,
    print_config: cli.PrintConfig = False,
    verbose: cli.Verbose = False,
) -> None:
    """Generate, pretrain and evaluate; the same command resumes."""
    with cli.usage_errors():
        loaded = cli.read(config, overrides, print_config)
        from cluster.pipeline import check_all, run_pipeline

        planned = check_all(loaded)
    cli.say(planned.describe(loaded))
    if dry_run:
        return
    from data_gen.local_ray import local_ray
    from icrl.progress import Progress

    idle = planned.dataset.complete and planned.train.finished
    workers = planned.train.workers * loaded.config.train.threads
    logs = planned.train.run.logs
    try:
        with nullcontext() if idle else local_ray(at_least=workers, verbose=verbose, logs=logs), Progress() as progress:
            code = run_pipeline(loaded, planned, progress)
    except KeyboardInterrupt:
        code = cli.INTERRUPTED
    path = planned.train.run.path
    figure = path / "figures" / "regret.png"
    if figure.exists():
        cli.say(f"figure          {figure}")
    if (path / "tb").exists():
        cli.say(f"board           tensorboard --logdir {path / 'tb'}")
    cli.say(f"next            python -m eval {path} eval.environments=2000" if code == 0 else f"run directory   {path}")
    raise typer.Exit(code)
