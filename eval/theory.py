"""`python -m eval.theory DIR [n=... delta=... ratio=... eps_real=...]`: the meters of the theory for a model on disk.

DIR is a run directory or one with weights alone. Norm, size of the class, Theorem 6 factor by factor, and how many
trajectories it takes for the theorem to say something.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from icrl import cli
from icrl.config import Config, UniformConfig

SEED, TRAJECTORIES = 12345, 32
"""Of the plays that the largest token is taken from: uniform play in environments of split EVAL."""

KEYS = ("n", "delta", "ratio", "eps_real")
app = cli.application("Norm, capacity and the right-hand side of Theorem 6 for a model on disk.")


@app.command(context_settings=cli.LENIENT)
def main(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Run directory, or one with model.safetensors.")],
    values: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="key=value",
            help="n: trajectories (default dataset.train of the run); delta: 0.05; ratio: R of Def 5 (default 1 for "
            "distillation, an upper bound where one is known); eps_real: 0.",
        ),
    ] = None,
) -> None:
    """Norm, capacity and the right-hand side of Theorem 6 for a model on disk; writes nothing."""
    with cli.usage_errors():
        given = numbers(values or ())
        text = report(directory, given)
    cli.say(text)


def numbers(values: Sequence[str]) -> dict[str, float]:
    """`key=value` arguments as numbers.

    Raises:
        ValueError: an unknown key, or a value that is no number.
    """
    found = {}
    for entry in values:
        key, equals, text = entry.removeprefix("--").partition("=")
        if key not in KEYS or not equals:
            raise ValueError(f"{entry}: expected one of {', '.join(f'{key}=...' for key in KEYS)}")
        try:
            found[key] = float(text)
        except ValueError:
            raise ValueError(f"{key} = {text}: expected a number") from None
    return found


def report(directory: Path, given: dict[str, float]) -> str:
    """The meters as text.

    Raises:
        ValueError: no model there, or a number that the run does not tell and that was not given.
    """
    import icrl.checkpoint
    from eval.plays import plays
    from icrl import theory
    from icrl.run_dir import RunDirectory

    config = RunDirectory.existing(directory).config() if (directory / "run.json").exists() else None
    model = icrl.checkpoint.load(directory)
    n, log_ratio, source = _data(config, given)
    norm = theory.operator_norm(model)
    of = theory.class_of(model, *plays(model.environment, UniformConfig(), SEED, TRAJECTORIES))
    sizes = model.config
    lines = [
        f"model    {sizes.preset}: L = {sizes.layers}, M = {sizes.heads}, D = {sizes.embed_dim}, D' = {sizes.mlp_dim}",
        f"norm     {norm.value:.6g}, of {norm.what}",
        f"         layers {_listed(norm.layers)}",
    ]
    if norm.ends:
        lines.append(f"         embedding and positions {norm.ends[0]:.4g}, read-out {norm.ends[1]:.4g}")
    met = f"the largest token of {TRAJECTORIES} uniform plays"
    if isinstance(of, theory.TheoryClass):
        lines.append(f"class    |||theta||| <= {of.norm:.4g}, R = {of.radius:.4g} ({met}), {of.numbers:,} numbers")
    else:
        lines.append(f"class    norm <= {of.norm:.4g}, fields <= {of.fields:.4g} ({met}), {of.numbers:,} numbers")
    fixed = {"delta": given.get("delta", 0.05), "log_ratio": log_ratio, "eps_real": given.get("eps_real", 0.0)}
    found = theory.guarantee(of.log_cover, horizon=model.environment.horizon, trajectories=n, **fixed)
    if isinstance(of, theory.TheoryClass):
        paper = theory.paper_log_cover(of, found.rho)
        lines.append(
            f"         ln N = {found.log_cover:.4g}; the paper's form, c = {theory.PAPER_CONSTANT}: {paper:.4g}"
        )
    lines += ["", f"Theorem 6 ({source})", found.table(), ""]
    for part, what in ((1, "(i) "), (2, "(ii)")):
        fewest = theory.fewest_trajectories(of.log_cover, part=part, horizon=found.horizon, **fixed)
        lines.append(f"{what} says something from n = {_count(fewest)} on")
    return "\n".join(lines)


def _listed(values: Sequence[float], most: int = 12) -> str:
    shown = [f"{value:.4g}" for value in values[:most]]
    return ", ".join([*shown, f"and {len(values) - most} more"] if len(values) > most else shown)


def _count(n: int | None) -> str:
    return "infinity" if n is None else f"{n:.3g}" if n >= 10**6 else f"{n:,}"


def _data(config: Config | None, given: dict[str, float]) -> tuple[int, float, str]:
    """n, ln R, and where they come from."""
    n = given.get("n", config.dataset.train if config else None)
    if n is None:
        raise ValueError("n: expected n=<trajectories>, a directory with weights alone does not tell")
    if not (n >= 1 and n == int(n)):
        raise ValueError(f"n = {n:g}: expected a whole number of trajectories")
    if "ratio" in given:
        if not given["ratio"] >= 1:
            raise ValueError(f"ratio = {given['ratio']:g}: expected at least 1")
        return int(n), math.log(given["ratio"]), "R as given"
    if config is None:
        raise ValueError("ratio: expected ratio=<R of Def 5>, 1 where the expert is the context itself")
    if config.expert.label == "distillation":
        return int(n), 0.0, "R = 1: the expert is the context itself"
    from icrl.ratio import log_upper_bound

    bound = log_upper_bound(config)
    if bound is None:
        raise ValueError(f"ratio: expected ratio=<R of Def 5>, no bound is known for label {config.expert.label} here")
    return int(n), bound[0], f"R at most: {bound[1]}"


if __name__ == "__main__":
    app()
