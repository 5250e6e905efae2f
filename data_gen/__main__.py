"""`python -m data_gen CONFIG [key=value ...]`: write a config's dataset; and what one does with a dataset on disk."""

from __future__ import annotations

import resource
from typing import Annotated, Any, Literal

import typer

from icrl import cli
from icrl.config import Config

app = cli.application("Generate a dataset of trajectories; check, repair and look at one.")

Store = Annotated[
    str, typer.Argument(help="Directory of a dataset, or s3://bucket/prefix.", metavar="STORE", show_default=False)
]
SampleSize = Annotated[int, typer.Option("--sample", min=0, help="Chunks of each split that are made again.")]
Full = Annotated[bool, typer.Option("--full", help="Make every chunk again, not a sample.")]
Actors = Annotated[str, typer.Option("--actors", help="As dataset.actors: 0 works in this process.", metavar="N|auto")]


@app.callback(cls=cli.with_default("generate"), subcommand_metavar="CONFIG [key=value]... | COMMAND [ARGS]...")
def commands() -> None:
    """Generate a dataset of trajectories; check, repair and look at one.

    CONFIG [key=value]... alone is the command generate.
    """


@app.command("generate", context_settings=cli.LENIENT)
def generate_command(
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
    cli.say(planned.describe())
    _refuse_leaks(loaded.config)
    if planned.virtual:
        cli.say(f"nothing to write; next: {cli.command('train', config, overrides)}")
        return
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


@app.command("verify")
def verify_command(store: Store, sample: SampleSize = 8, full: Full = False) -> None:
    """Check every sum of a dataset and make a sample of it again; exit code 1 if anything is damaged or missing."""
    with cli.usage_errors():
        from data_gen.repair import check
        from icrl.files import size_text
        from icrl.progress import Progress
        from icrl.store import dataset_place, recover_recipe

        dataset = dataset_place(store)
        recover_recipe(dataset)
    with cli.work_errors(), Progress() as progress:
        progress.start("verify", 1)
        found = check(
            dataset, sample=None if full else sample, progress=lambda done, total: progress.update(done / max(total, 1))
        )
        progress.finish(f"{found.shards} shards, {found.chunks_regenerated} chunks made again")
    _say_faults(found)
    if found.partials:
        cli.say(f"left over       {found.partials} partial files of a writer; no data")
    if found.faults:
        cli.say(f"next: python -m data_gen repair {store}")
        raise typer.Exit(cli.FAILED)
    cli.say(f"sound           {found.shards} shards, {size_text(found.bytes)}")


@app.command("repair")
def repair_command(store: Store, sample: SampleSize = 8, full: Full = False, actors: Actors = "0") -> None:
    """Write again what verify finds damaged or missing, byte for byte as it was; nothing else is touched."""
    with cli.usage_errors():
        from contextlib import nullcontext

        from data_gen.local_ray import local_ray
        from data_gen.repair import repair
        from icrl.progress import Progress
        from icrl.store import dataset_place, recover_recipe

        if actors != "auto" and not actors.isdecimal():
            raise ValueError(f"--actors {actors}: expected a number, or auto")
        number: int | Literal["auto"] = "auto" if actors == "auto" else int(actors)
        dataset = dataset_place(store)
        recover_recipe(dataset)
    with cli.work_errors(), local_ray() if number else nullcontext(), Progress() as progress:
        progress.start("repair", 1)
        done = repair(
            dataset,
            sample=None if full else sample,
            actors=number,
            progress=lambda now, total: progress.update(now / max(total, 1)),
        )
        progress.finish(f"{len(done.mended)} files of metadata and {len(done.shards)} shards written again")
    _say_faults(done.found)
    for path in done.mended:
        cli.say(f"written again   {path}")
    for task in done.shards:
        cli.say(f"written again   {task.split} shard {task.shard}: trajectories {task.start:,} to {task.stop - 1:,}")
    if done.swept:
        cli.say(f"removed         {done.swept} partial files")
    if not done.mended and not done.shards:
        cli.say("nothing to repair")
    cli.say(f"next: python -m data_gen verify {store}")


@app.command("inspect")
def inspect_command(
    store: Store, split: Annotated[str, typer.Option("--split", help="Which split to sample.")] = "train"
) -> None:
    """Print a dataset's card, and statistics of a sample: regret, actions, sources."""
    with cli.usage_errors():
        from data_gen.inspection import inspect
        from icrl.store import CARD_FILE, dataset_place

        dataset = dataset_place(store)
        lines = inspect(dataset, split)
        card = dataset / CARD_FILE
        if card.exists():
            cli.say(card.read_bytes().decode())
    for line in lines[1:]:
        cli.say(line)


def _say_faults(found: Any) -> None:
    """Every damaged file by name; of what was never committed, the number and the first."""
    from icrl.store import NOT_COMMITTED

    for fault in found.faults:
        if fault.problem != NOT_COMMITTED:
            cli.say(f"damaged         {fault}")
    absent = [fault for fault in found.faults if fault.problem == NOT_COMMITTED]
    for fault in absent[:10]:
        cli.say(f"missing         {fault}")
    if len(absent) > 10:
        cli.say(f"missing         and {len(absent) - 10} other shards")


if __name__ == "__main__":
    app()
