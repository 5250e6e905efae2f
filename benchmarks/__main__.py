"""`python -m benchmarks [NAME ...]`: every benchmark, or those named; exit code 1 when one misses its floor."""

from __future__ import annotations

import importlib
import json
import platform
import sys
from pathlib import Path
from typing import Annotated, Any

if __name__ == "__main__" and sys.argv[1:2] == ["attention"] and "--gpu" in sys.argv:
    # before the imports below: a GPU machine may have torch, Triton and NumPy only
    from benchmarks import attention_gpu

    sys.exit(attention_gpu.main(check_only="--check" in sys.argv))

import typer

from icrl import cli

NAMES = ("generation", "mdp", "store", "loader", "attention", "step", "decode", "checkpoint")
ON_REQUEST = ("sweep", "train", "recipe", "capacity", "probe", "constructions")
"""Take minutes: only by name."""

app = cli.application("Measure what the system does against the reference's way, in the same run.")


@app.command()
def main(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help=f"Of {', '.join(NAMES + ON_REQUEST)}.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer repetitions.")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="Write the figures as JSON to this file.")] = None,
) -> None:
    """Measure what the system does against the reference's way, in the same run.

    attention --gpu measures the kernels of the CUDA device at hand instead, --check only checks them: docs/gpu.md.

    Medians, of CPU time where the work allows it: these figures hold on a machine shared with others. Without names all
    but those that take minutes.
    """
    with cli.usage_errors():
        unknown = [name for name in names or () if name not in NAMES + ON_REQUEST]
        if unknown:
            raise ValueError(f"NAME = {unknown[0]}: expected one of {', '.join(NAMES + ON_REQUEST)}")
    results: dict[str, Any] = {}
    for name in names or NAMES:
        benchmark = importlib.import_module(f"benchmarks.{name}")
        results[name] = benchmark.run(quick)
        cli.say(f"\n{name}\n{benchmark.table(results[name])}")
    if out is not None:
        machine = {"machine": platform.processor() or platform.machine(), "python": platform.python_version()}
        out.write_text(json.dumps({"on": machine, "results": results}, indent=2) + "\n")
    missed = [name for name, result in results.items() if not result["passed"]]
    cli.say(f"\nmissed: {', '.join(missed)}" if missed else "\nevery floor is met")
    raise typer.Exit(cli.FAILED if missed else 0)


if __name__ == "__main__":
    app()
