"""`python -m data_gen CONFIG [key=value ...]`: write a config's dataset."""

from __future__ import annotations

from icrl import cli

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
        from icrl.files import size_text
        from icrl.store import ObjectPath, require_free

        planned = plan(loaded.config)
        require_free(planned.dataset, planned.bytes_needed)
    cli.say(f"dataset         {planned.dataset}")
    cli.say(f"trajectories    {planned.trajectories:,} in {planned.shards} shards, {size_text(planned.bytes)}")
    cli.say(f"missing         {planned.trajectories_missing:,} in {len(planned.tasks)} shards")
    if isinstance(planned.dataset, ObjectPath) and planned.tasks:
        cli.say("lock            none in an object store: a second command would write the same shards again")
    if dry_run:
        return
    from data_gen.generate import generate
    from data_gen.local_ray import ray_for_actors
    from icrl.progress import Progress

    with cli.work_errors(), ray_for_actors(loaded.config, planned), Progress() as progress:
        progress.start("generate", max(planned.trajectories_missing, 1))
        summary = generate(loaded.config, progress=lambda now: progress.update(now.trajectories))
        progress.finish(f"{summary.trajectories_written:,} trajectories by {summary.actors or 'no'} actors")
    cli.say(f"next: {cli.command('train', config, overrides)}")


if __name__ == "__main__":
    app()
