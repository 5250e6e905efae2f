"""`python -m eval.theory DIR [n=... delta=... ratio=... eps_real=... eps_approx=...]`: the theory's meters of a model.

DIR is a run directory or one with weights alone. Norm, size of the class, Theorem 6 (or Prop 7) factor by factor, and
how many trajectories it takes for the theorem to say something.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from icrl import cli
from icrl.config import Config, UniformConfig

SEED, TRAJECTORIES = 12345, 32
"""Of the plays that the largest token is taken from: uniform play in environments of split EVAL."""

KEYS = ("n", "delta", "ratio", "eps_real", "eps_approx")
app = cli.application("Norm, capacity and the right-hand side of Theorem 6 for a model on disk.")


@app.command(context_settings=cli.LENIENT)
def main(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Run directory, or one with model.safetensors.")],
    values: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="key=value",
            help="n: trajectories (default dataset.train of the run); delta: 0.05; ratio: R of Def 5 (default 1 for "
            "distillation, an upper bound where one is known); eps_real: 0; eps_approx: of an approximate label, for "
            "Prop 7 in place of Theorem 6.",
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
    n = _trajectories(config, given)
    claim = _claim(config, given)
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
    fixed: dict[str, Any] = {
        "delta": given.get("delta", 0.05),
        "log_ratio": claim.log_ratio,
        "eps_real": given.get("eps_real", 0.0),
        "eps_approx": claim.eps_approx,
        "reward_bound": theory.reward_bound(model.environment),
    }
    found = theory.guarantee(of.log_cover, horizon=model.environment.horizon, trajectories=n, **fixed)
    if isinstance(of, theory.TheoryClass):
        paper = theory.paper_log_cover(of, found.rho)
        lines.append(
            f"         ln N = {found.log_cover:.4g}; the paper's form, c = {theory.PAPER_CONSTANT}: {paper:.4g}"
        )
    lines += ["", f"{claim.theorem} ({claim.source})", found.table(), ""]
    parts = [(1, "(i) "), (2, "(ii)")]
    for part, what in parts if found.reward_bound is not None else parts[:1]:
        fewest = theory.fewest_trajectories(of.log_cover, part=part, horizon=found.horizon, **fixed)
        lines.append(f"{what} says something from n = {_count(fewest)} on")
    return "\n".join(lines)


def _listed(values: Sequence[float], most: int = 12) -> str:
    shown = [f"{value:.4g}" for value in values[:most]]
    return ", ".join([*shown, f"and {len(values) - most} more"] if len(values) > most else shown)


def _count(n: int | None) -> str:
    return "infinity" if n is None else f"{n:.3g}" if n >= 10**6 else f"{n:,}"


def _trajectories(config: Config | None, given: dict[str, float]) -> int:
    from icrl.theory.guarantee import MOST

    n = given.get("n", config.dataset.train if config else None)
    if n is None:
        raise ValueError("n: expected n=<trajectories>, a directory with weights alone does not tell")
    if not (1 <= n <= MOST and n == int(n)):
        raise ValueError(f"n = {n:g}: expected a whole number of trajectories, at most {MOST:g}")
    return int(n)


@dataclass(frozen=True)
class _Claim:
    """Which statement holds for a label, and with which ratio."""

    theorem: str
    log_ratio: float
    eps_approx: float | None
    """None: Theorem 6, the distance is to the label's own reduced expert."""
    source: str


def _claim(config: Config | None, given: dict[str, float]) -> _Claim:
    """Theorem 6, or Prop 7 where `eps_approx` is given, with the ratio that is given or else known."""
    from icrl.ratio import known_ratio

    label = config.expert.label if config else None
    eps = given.get("eps_approx")
    if eps is not None and label not in (None, "approximate"):
        raise ValueError(
            f"eps_approx = {eps:g}: expected only with expert.label approximate, not {label}; leave it out"
        )
    theorem, expert = ("Theorem 6", label) if eps is None else ("Prop 7", "optimal")
    # the ratio of Prop 7 is that of posterior sampling
    known = known_ratio(config, expert) if config else None
    if known and not known.defined:
        raise ValueError(
            f"ratio: R of Def 5 is not defined for this run ({known.why}), so {theorem} says nothing of it"
        )
    if "ratio" in given:
        if not given["ratio"] >= 1:
            raise ValueError(f"ratio = {given['ratio']:g}: expected at least 1")
        return _Claim(theorem, math.log(given["ratio"]), eps, "R as given")
    if known is None:
        raise ValueError("ratio: expected ratio=<R of Def 5>, 1 where the expert is the context itself")
    if known.log_bound is None:
        prop = ""
        if eps is None and label == "approximate":
            prop = ", or eps_approx=<nats> for Prop 7 (eval/approximation_kl of `python -m eval` measures it)"
        raise ValueError(f"ratio: expected ratio=<R of Def 5>{prop}; no bound is known: {known.why}")
    what = "R = 1" if expert == "distillation" else "R at most"
    return _Claim(theorem, known.log_bound, eps, f"{what}: {known.why}")


if __name__ == "__main__":
    app()
