"""The project's training recipe against the reference's, at the same evaluation and at most half the samples.

Each run is `python -m train` on one worker with one thread, on a config of configs/recipe/: Experiment 1's environment
with a horizon of 50 and a model of 4 layers. Both validate on the same trajectories. The results folder holds the runs
and recipe.csv, which is made anew from them after each; the same command goes on with what is unfinished.

`python -m benchmarks.recipe` takes options; `python -m benchmarks recipe` is the whole of it, for hours.
"""

from __future__ import annotations

import csv
import io
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import typer

from icrl import cli
from icrl.board import read_records
from icrl.config import load
from icrl.files import atomic_write
from icrl.run_dir import RunDirectory

REFERENCE, PROJECT = "reference", "project"
STEPS = 20_000
"""Of the reference; the project's recipe gets half."""
SEEDS = (0, 1, 2)
RESULTS = Path("runs/recipe")


@dataclass(frozen=True)
class Result:
    """A validation log-loss of one run."""

    recipe: str
    seed: int
    step: int
    samples: int
    validation_loss: float
    last: bool
    """Whether it is that of the trained model."""


def compare(out: Path, steps: int, seeds: Sequence[int], recipes: Sequence[str], extra: Sequence[str]) -> list[Result]:
    """Run what is not done yet, and return every validation of these runs; `extra` are overrides of all of them."""
    results: list[Result] = []
    for seed in seeds:
        for recipe in recipes:
            own = _overrides(out, recipe, seed, steps, extra)
            _train(recipe, own)
            results += _validations(recipe, seed, own)
            write_csv(out / "recipe.csv", results)
    return results


def _overrides(out: Path, recipe: str, seed: int, steps: int, extra: Sequence[str]) -> list[str]:
    """Steps, and a warm-up of the same part of them as in the recipe."""
    config = load(_file(recipe)).config.train
    own = steps if recipe == REFERENCE else steps // 2
    warmup = math.ceil(config.schedule.warmup * own / config.steps)
    return [
        f"storage.root={out.absolute()}",
        f"run.dir={recipe}-{own}-seed{seed}",
        f"train.steps={own}",
        f"train.schedule.warmup={warmup}",
        f"train.seed={seed}",
        *extra,
    ]


def _train(recipe: str, overrides: Sequence[str]) -> None:
    command = [sys.executable, "-m", "train", _file(recipe), *overrides]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False)
    if done.returncode:
        raise ValueError(f"{' '.join(command)} ended with exit code {done.returncode}; the same command goes on")


def _validations(recipe: str, seed: int, overrides: Sequence[str]) -> list[Result]:
    config = load(_file(recipe), overrides).config
    run = RunDirectory(Path(config.storage.root) / str(config.run.dir))
    return [
        Result(
            recipe,
            seed,
            record["step"],
            record["step"] * config.train.global_batch,
            record["tags"]["train/validation_loss"],
            record["step"] == config.train.steps,
        )
        for record in read_records(run.metrics)
        if "train/validation_loss" in record["tags"]
    ]


def _file(recipe: str) -> str:
    return f"configs/recipe/{recipe}.yaml"


def write_csv(path: Path, results: Sequence[Result]) -> None:
    """One line a validation."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in fields(Result))
    writer.writerows(astuple(result) for result in results)
    atomic_write(path, text.getvalue().encode())


def summary(results: Sequence[Result]) -> dict[str, Any]:
    """Final log-loss by recipe and seed, samples, and by seed how much of the reference's samples the project needed.

    `passed`: every seed of the project's recipe ends at or below the reference's of that seed, with at most half the
    samples.
    """
    final = {(r.recipe, r.seed): r for r in results if r.last}
    seeds = sorted({seed for _, seed in final})
    both = [seed for seed in seeds if {(REFERENCE, seed), (PROJECT, seed)} <= final.keys()]
    share = {}
    for seed in both:
        goal = final[REFERENCE, seed]
        reached = [
            r.samples
            for r in results
            if (r.recipe, r.seed) == (PROJECT, seed) and r.validation_loss <= goal.validation_loss
        ]
        share[seed] = min(reached) / goal.samples if reached else None
    return {
        "final": {f"{recipe} seed {seed}": (r.validation_loss, r.samples) for (recipe, seed), r in final.items()},
        "mean": {
            recipe: statistics.mean(r.validation_loss for r in final.values() if r.recipe == recipe)
            for recipe in sorted({r.recipe for r in final.values()})
        },
        "share_of_samples": share,
        "passed": bool(both)
        and all(final[PROJECT, s].validation_loss <= final[REFERENCE, s].validation_loss for s in both)
        and all(final[PROJECT, s].samples * 2 <= final[REFERENCE, s].samples for s in both),
    }


def run(quick: bool) -> dict[str, Any]:  # noqa: FBT001 - the signature of every benchmark
    """The whole comparison, or one seed of a twentieth of the steps."""
    out, steps, seeds = (RESULTS / "quick", STEPS // 20, SEEDS[:1]) if quick else (RESULTS, STEPS, SEEDS)
    return summary(compare(out, steps, seeds, (REFERENCE, PROJECT), ()))


def table(result: dict[str, Any]) -> str:
    """The result of `summary` for a terminal."""
    lines = [f"{'validation log-loss':26}{'nats a round':>14}{'samples':>14}"]
    lines += [f"{name:26}{loss:14.4f}{samples:14,}" for name, (loss, samples) in result["final"].items()]
    lines += [f"{'mean of ' + recipe:26}{loss:14.4f}" for recipe, loss in result["mean"].items()]
    for seed, share in result["share_of_samples"].items():
        reached = "not reached" if share is None else f"at {share:.0%} of its samples"
        lines.append(f"{f'reference of seed {seed}':26}{reached:>28}")
    return "\n".join(lines)


app = cli.application("Compare training recipes; the same command goes on with what is unfinished.")


@app.command(context_settings=cli.LENIENT)
def main(
    overrides: Annotated[list[str] | None, typer.Argument(help="Overrides of every run.", metavar="key=value")] = None,
    steps: Annotated[int, typer.Option("--steps", min=2, help="Of the reference; the project's gets half.")] = STEPS,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="How many, from 0 on.")] = len(SEEDS),
    recipes: Annotated[str, typer.Option("--recipes", help="Of configs/recipe/.")] = f"{REFERENCE},{PROJECT}",
    out: Annotated[Path, typer.Option("--out", help="Results folder.")] = RESULTS,
) -> None:
    """Compare training recipes; the same command goes on with what is unfinished."""
    with cli.usage_errors():
        names = recipes.split(",")
        for name in names:
            if not Path(_file(name)).is_file():
                raise ValueError(f"--recipes {name}: expected the name of a file in configs/recipe/")
    with cli.work_errors():
        result = summary(compare(out, steps, range(seeds), names, overrides or ()))
    cli.say(f"\n{table(result)}\n{out / 'recipe.csv'}")


if __name__ == "__main__":
    app()
