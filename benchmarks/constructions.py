"""Soft LinUCB in weights: depth, sizes and error of every method, against T, the condition number and the layers spent.

`python -m benchmarks.constructions [FOLDER [NAME ...]]` writes linucb-depth.csv and linucb-depth.png, and the same of
thompson (`thompson_depth`); all of them, or those named. `python -m benchmarks constructions` writes all of them to
docs/theory. Errors are the largest |difference of log p| from the exact
algorithm along LinUCB's own plays at d = 5, A = 10.
"""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks import thompson_depth
from icrl import algorithms, cli, envs
from icrl.config import LinearBanditConfig, LinUCBConfig
from icrl.constructions import Construction, Method, linucb
from icrl.rollout.loop import play
from icrl.streams import Split

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "theory"
SETTING = LinearBanditConfig()
METHODS: tuple[Method, ...] = ("paper", "newton_schulz", "log_depth")
TOLERANCE = 1e-3
Row = dict[str, Any]


def history(environment: LinearBanditConfig, ridge: float, n: int) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """LinUCB's plays in n environments, and the log-probabilities [n,T,A] of the soft algorithm along them."""
    index = np.arange(n, dtype=np.int64)
    hard, soft = (algorithms.build(LinUCBConfig(ridge=ridge, temperature=t), environment) for t in (0.0, 1.0))
    played = play(environment, hard, 7, Split.EVAL, index)
    batch = envs.sample(environment, 7, Split.EVAL, index)
    soft.reset(batch)
    exact = []
    for t in range(environment.horizon):
        exact.append(np.log(soft.probabilities()))
        soft.update(played.action[:, t].astype(np.int64), played.reward[:, t])
    data = torch.from_numpy(batch.action_set), torch.from_numpy(played.action), torch.from_numpy(played.reward)
    return data, torch.from_numpy(np.stack(exact, 1))


@torch.no_grad()
def error(model: Construction, data: tuple[Tensor, Tensor, Tensor], exact: Tensor) -> float:
    """Largest |difference of log p|."""
    return float((model(*data).double().log_softmax(-1) - exact).abs().max())


def _row(part: str, model: Construction, condition: float, horizon: int, found: float | None) -> Row:
    report = model.report
    return {
        "part": part,
        "method": report.method,
        "dtype": str(model.dtype).removeprefix("torch."),
        "T": horizon,
        "kappa": condition,
        "ridge_layers": report.choices["ridge_layers"],
        "L": report.layers,
        "M": report.heads,
        "D": report.embed_dim,
        "D'": report.mlp_dim,
        "norm": report.operator_norm,
        "guaranteed": report.choices["guaranteed"],
        "error": found,
        "theorem_L": report.theorem["layers"],
    }


def rows() -> Iterator[Row]:
    """Every point of the figure, cheap ones first."""
    condition = 3.0 * 2  # kappa = beta 2T / ridge, beta = (B_a^2 + ridge) / 2 = 3
    for horizon in (10, 30, 100, 200, 500, 1000, 2000):
        environment = replace(SETTING, horizon=horizon)
        for method in METHODS:
            model = linucb(environment, method=method, tolerance=TOLERANCE)
            yield _row("depth", model, condition * horizon, horizon, None)
    data, exact = history(SETTING, 1.0, 2)
    sweep: dict[Method, Iterable[int]] = {
        "paper": (25, 50, 100, 200, 398),
        "newton_schulz": range(5, 17),
        "log_depth": range(3, 11),
    }
    for method in METHODS:
        for steps in sweep[method]:
            model = linucb(SETTING, method=method, ridge_layers=steps, knots=400)
            yield _row("steps", model, condition * 200, 200, error(model, data, exact))
    for ridge in (10.0, 1.0, 0.1, 0.01, 1e-3):
        data, exact = history(SETTING, ridge, 2)
        kappa = (5 + ridge) / 2 * 400 / ridge if ridge < 5 else 400.0
        for dtype in (torch.float64, torch.float32):
            model = linucb(SETTING, method="log_depth", ridge=ridge, tolerance=1.0, knots=400, dtype=torch.float64)
            yield _row("condition", model.to(dtype), kappa, 200, error(model.to(dtype), data, exact))
    for horizon in (50, 200, 500, 1000, 2000):
        environment = replace(SETTING, horizon=horizon)
        data, exact = history(environment, 1.0, 1)
        for dtype in (torch.float64, torch.float32):
            model = linucb(environment, method="log_depth", tolerance=TOLERANCE).to(dtype)
            yield _row("horizon", model, condition * horizon, horizon, error(model, data, exact))


def draw(found: list[Row], path: Path) -> None:
    """Four panels: depth against T, error against layers, error against T, error against the condition number."""
    figure = Figure(figsize=(11, 8), layout="constrained")
    depth, steps, horizon, condition = figure.subplots(2, 2).flat

    def line(axes: Any, part: str, x: str, y: str, label: str, **match: str) -> None:
        chosen = [row for row in found if row["part"] == part and all(row[k] == v for k, v in match.items())]
        axes.loglog([row[x] for row in chosen], [row[y] for row in chosen], marker="o", label=label)

    for method in METHODS:
        line(depth, "depth", "T", "L", method, method=method)
        line(steps, "steps", "L", "error", method, method=method)
    line(depth, "depth", "T", "theorem_L", "the theorem's formula", method="paper")
    depth.set(xlabel="T", ylabel="layers", ylim=(5, 3e5), title=f"Layers that guarantee {TOLERANCE:g}")
    steps.axhline(TOLERANCE, color="grey", linestyle=":")
    steps.set(xlabel="layers", ylabel="max |Δ log p|", title="Measured error, T = 200, 400 knots")
    for dtype in ("float64", "float32"):
        line(horizon, "horizon", "T", "error", dtype, dtype=dtype)
        line(condition, "condition", "kappa", "error", dtype, dtype=dtype)
    horizon.axhline(TOLERANCE, color="grey", linestyle=":")
    horizon.set(xlabel="T", ylabel="max |Δ log p|", title="log_depth, measured, ridge 1")
    condition.set(xlabel="condition number bound", ylabel="max |Δ log p|", title="log_depth, measured, T = 200")
    for axes in (depth, steps, horizon, condition):
        axes.legend(loc="upper left" if axes is depth else "best")
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=130)


PARTS: dict[str, tuple[Callable[[], Iterator[Row]], Callable[[list[Row], Path], None]]] = {
    "linucb": (rows, draw),
    "thompson": (thompson_depth.rows, thompson_depth.draw),
}


def measure(folder: Path, name: str, most: int | None = None) -> list[Row]:
    """Write the table row by row, then the figure; with `most` rows at most and no figure."""
    torch.set_num_threads(1)
    points, picture = PARTS[name]
    found: list[Row] = []
    with (folder / f"{name}-depth.csv").open("w", newline="") as file:
        for row in islice(points(), most):
            writer = csv.DictWriter(file, list(row))
            if not found:
                writer.writeheader()
            writer.writerow(row)
            file.flush()
            found.append(row)
            shown = ("part", "method", "dtype", "T", "kappa", "L", "norm", "error")
            cli.say(" ".join(f"{key}={row[key]}" for key in shown))
    if most is None:
        picture(found, folder / f"{name}-depth.png")
    return found


def run(quick: bool) -> dict[str, Any]:  # noqa: FBT001 - the signature of every benchmark
    """Everything, into docs/theory; quick: three rows of each, nothing kept."""
    with tempfile.TemporaryDirectory(prefix="icrl-constructions-") as scratch:
        folder, most = (Path(scratch), 3) if quick else (FOLDER, None)
        found = {name: measure(folder, name, most) for name in PARTS}
    kept = [row for row in found["linucb"] if row["dtype"] == "float64" and row["error"] is not None]
    return {"rows": found, "passed": all(row["error"] <= row["guaranteed"] for row in kept)}


def table(result: dict[str, Any]) -> str:
    """How many rows there are; each was printed as it came."""
    return "\n".join(f"{name:12}{len(found):4} rows" for name, found in result["rows"].items())


app = cli.application("Depth, sizes and error of the constructions, as tables and figures.")


@app.command()
def main(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the tables and figures go.")] = Path(),
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME", help=f"Of {', '.join(PARTS)}.")] = None,
) -> None:
    """Depth, sizes and error of the constructions, as tables and figures. Takes minutes."""
    with cli.usage_errors():
        if not folder.is_dir():
            raise ValueError(f"FOLDER = {folder}: expected a directory that is there")
        for name in names or ():
            if name not in PARTS:
                raise ValueError(f"NAME = {name}: expected one of {', '.join(PARTS)}")
    for name in names or PARTS:
        measure(folder, name)


if __name__ == "__main__":
    app()
