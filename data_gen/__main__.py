"""`python -m data_gen CONFIG [key=value ...]`: write a config's dataset."""

from __future__ import annotations

import resource

import typer

from icrl import cli
from icrl.config import Config

app = cli.application("Generate a dataset of trajectories; the same command resumes.")


@app.command(context_settings=cli.LENIENT)
def main(
    config: cli.ConfigPath,
    overrides: cli.Overrides = None,
    dry_run: cli.DryRun = False,
    print_config: cli.PrintConfig = False,
) -> None:
    """Generate a dataset of trajectories; the same command resumes.

    Starts a local Ray and its actors, or works in this process with dataset.actors=0.
    """
    with cli.usage_errors():
        loaded = cli.read(config, overrides, print_config)
        from data_gen.plan import plan
        from icrl.files import require_free, size_text

        planned = plan(loaded.config)
        require_free(planned.dataset, planned.bytes_needed)
    cli.say(planned.describe())
    _refuse_leaks(loaded.config)
    if planned.virtual:
        cli.say(f"nothing to write; next: {cli.command('train', config, overrides)}")
        return
    if dry_run:
        return
    from data_gen.generate import generate
    from data_gen.local_ray import ray_for_actors
    from icrl.progress import Progress

    with cli.work_errors(), ray_for_actors(loaded.config, planned), Progress() as progress:
        progress.start("generate", max(planned.trajectories_missing, 1))
        summary = generate(loaded.config, progress=lambda now: progress.update(now.trajectories))
        rate = summary.trajectories_written / max(summary.seconds, 1e-9)
        progress.finish(
            f"{summary.trajectories_written:,} trajectories by {summary.actors or 'no'} actors, {rate:,.0f}/s"
        )
    if summary.shards_written:
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        cli.say(f"time            {summary.seconds:,.1f} s, {summary.cpu_s:,.1f} s of CPU in rollouts and writing")
        cli.say(f"peak memory     {size_text(own)} this process, {size_text(summary.peak_bytes)} the largest worker")
    cli.say(f"next: {cli.command('train', config, overrides)}")


def _refuse_leaks(config: Config) -> None:
    """Say whether the splits share environments; a leak ends the command."""
    from icrl.envs.leakage import leakage
    from icrl.store import dataset_recipe

    found = leakage(config.environment, config.dataset.seed, dataset_recipe(config)["sizes"])
    cli.say(f"splits          {found.describe()}")
    if found.found:
        raise typer.Exit(cli.FAILED)


if __name__ == "__main__":
    app()
