"""`python -m cluster runs list|show|diff|rm`: what has piled up."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from icrl import cli

runs = cli.application("List, compare and remove runs.")

Root = Annotated[Path, typer.Option("--root", help="The storage root, as storage.root of the configs.")]
Name = Annotated[str, typer.Argument(help="A run: its directory, its name, or the beginning of it.", metavar="RUN")]
Names = Annotated[list[str], typer.Argument(help="Runs, as in show.", metavar="RUN...")]
Json = Annotated[bool, typer.Option("--json", help="For machines.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]

_HERE = Path()


@runs.command("list")
def list_runs(root: Root = _HERE, as_json: Json = False) -> None:
    """Every run: state, step, regret as a multiple of the teacher's, age and size."""
    from cluster.runs import find, listed, row
    from icrl.files import size_text

    with cli.usage_errors():
        lines = [line for found in find(_runs(root)) if (line := listed(found))]
    if as_json:
        cli.say(json.dumps([dataclasses.asdict(line) for line in lines], indent=2))
        return
    if not lines:
        cli.say(f"no runs below {_runs(root)}")
        return
    lines.sort(key=lambda line: -line.updated)
    rows = [row(line) | {"size": size_text(line.bytes)} for line in lines]
    cli.say(aligned([list(rows[0]), *(list(cells.values()) for cells in rows)], left=2))
    cli.say(f"\n{_runs_text(len(lines))}, {size_text(sum(line.bytes for line in lines))}")


@runs.command("show")
def show(name: Name, root: Root = _HERE) -> None:
    """One run: where it stands, its config as far as it is not the default, and its results."""
    from cluster.runs import age, named, summary
    from icrl.board import recorded_outcome
    from icrl.config import Config, flatten, identity
    from icrl.files import read_json, size_text
    from icrl.masking import mask

    with cli.usage_errors():
        (found,) = named(_runs(root), [name])
        line, run = summary(found), found.run
        config = run.config()
    cli.say(f"run             {run.path}")
    step = "" if line.step is None else f", step {line.step:,} of {config.train.steps:,}"
    cli.say(f"state           {line.state}{step}, {age(time.time() - line.updated)} ago{', in use' * line.in_use}")
    if error := run.status().get("error"):
        cli.say(f"error           {error}")
    cli.say(f"size            {size_text(line.bytes)}")
    cli.say(f"commit          {read_json(run.path / 'env.json').get('commit') or '(outside a checkout)'}")
    cli.say(f"board           {recorded_outcome(run) or 'open'}: python -m cluster board {run.path}")
    default = flatten(identity(Config()))
    cli.say("\nconfig, where it is not the default")
    for key, value in flatten(identity(config)).items():
        if default.get(key, object()) != value:
            cli.say(f"  {key} = {mask(value, key)}")
    cli.say()
    cli.say(_results(run.results))


@runs.command("diff")
def diff(first: Name, second: Name, root: Root = _HERE) -> None:
    """Two runs: what differs in their configs, and their results side by side."""
    from cluster.runs import named
    from icrl.config import difference, identity
    from icrl.masking import mask

    with cli.usage_errors():
        one, other = (named(_runs(root), [name])[0] for name in (first, second))
        before, after = (mask(identity(found.run.config())) for found in (one, other))
    cli.say(f"A  {one.name}\nB  {other.name}\n\nconfig, A -> B")
    for line in difference(before, after) or ["the same"]:
        cli.say(f"  {line}")
    columns = [_metrics(found.run.results) for found in (one, other)]
    tags = list(dict.fromkeys(tag for column in columns for tag in column))
    cli.say()
    if not tags:
        cli.say("neither has results")
        return
    cells = [[tag, *(f"{column[tag]:.4g}" if tag in column else "-" for column in columns)] for tag in tags]
    cli.say(aligned([["results", "A", "B"], *cells], left=1))


@runs.command("rm")
def remove(names: Names, root: Root = _HERE, yes: Yes = False) -> None:
    """Delete runs, or whole sweeps, with all they hold; datasets stay. What somebody works on is never touched."""
    from cluster import runs as found_runs
    from icrl.files import size_text

    top = _runs(root)
    with cli.usage_errors():
        sweeps = {name: found_runs.sweep_named(top, name) for name in names}
        whole = {sweep.name: sweep for sweep in sweeps.values() if sweep is not None}
        inside = [trial for sweep in whole.values() for trial in sweep.trials]
        single = found_runs.named(top, [name for name, sweep in sweeps.items() if sweep is None])
        single = [found for found in single if found.name not in {trial.name for trial in inside}]
        used = [found.name for found in (*single, *inside) if found_runs.in_use(found.run)]
        if used:
            raise ValueError(f"{', '.join(used)}: in use; stop it first, nothing was removed")
    total = 0
    for sweep in whole.values():
        held = found_runs.size(sweep.directory.path)
        total += held
        cli.say(f"{sweep.name}  sweep of {_runs_text(len(sweep.trials))}  {size_text(held)}")
    for found in single:
        held = found_runs.size(found.run.path)
        total += held
        cli.say(f"{found.name}  {found_runs.state(found.run)}  {size_text(held)}")
    count = _runs_text(len(single) + len(inside))
    if not yes and not typer.confirm(f"Remove {count} and free {size_text(total)}?"):
        cli.say("nothing was removed")
        raise typer.Exit(cli.FAILED)
    with cli.usage_errors():
        freed = sum(found_runs.remove_sweep(sweep) for sweep in whole.values())
        freed += sum(found_runs.remove(found) for found in single)
    cli.say(f"removed {count}, {size_text(freed)} freed; datasets are left as they were")


def aligned(rows: Sequence[Sequence[str]], left: int) -> str:
    """Rows of cells as text, the first `left` columns flush left, a rule below the first row."""
    widths = [max(len(cells[i]) for cells in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()
        for cells in rows
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _runs(root: Path) -> Path:
    from cluster.runs import sweep_removed

    runs = root.expanduser().absolute() / "runs"
    sweep_removed(runs)
    return runs


def _runs_text(count: int) -> str:
    return f"{count} run{'s' * (count != 1)}"


def _results(path: Path) -> str:
    from eval.results import load, table

    if not path.is_file():
        return "no results yet"
    try:
        return table(load(path))
    except ValueError as error:
        return str(error)


def _metrics(path: Path) -> dict[str, float]:
    from eval.results import load, metrics

    if not path.is_file():
        return {}
    try:
        results = load(path)
    except ValueError:
        return {}
    return {f"parameters/{part}": float(count) for part, count in results.parameters.items()} | metrics(results)
