"""`python -m eval.probe DIR`: which layer carries the ridge estimate, A_t^{-1} a_k and A_t, by linear probes.

A probe is ridge regression from the residual stream at the tokens that ask for an action to what LinUCB would compute
there from the same history; R^2 on trajectories it was not fitted to. Depth 0 is the stream before the first layer.

Shapes: B trajectories, T rounds, A actions, d dim, N tokens, D embed_dim, L layers, k numbers of a target.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import typer

from eval.plays import Plays, plays
from icrl import cli
from icrl.config import GridWorldConfig, LinUCBConfig, TabularMDPConfig
from icrl.model import Transformer

Array = npt.NDArray[np.float64]

PENALTIES = (1e-10, 1e-7, 1e-4, 1e-2, 1.0)
"""Of the probe, in units of the number of rows; the best on a quarter of the fitted trajectories is taken."""

TARGETS = {
    "ridge_estimate": "ridge estimate $w_t$",
    "directions": "directions $A_t^{-1} a_k$",
    "gram": "Gram matrix $A_t$",
}

app = cli.application("Which layer of a model carries the ridge estimate, A^{-1} a and the Gram matrix.")


@dataclass(frozen=True)
class Probes:
    """R^2 of every target at every depth."""

    r2: Mapping[str, tuple[float, ...]]
    """Target -> [L+1], the mean over its numbers; on held-out trajectories, so it may be below 0."""
    fitted: int
    """Trajectories that probes were fitted to, and their penalty chosen on."""
    held_out: int

    def rows(self) -> list[tuple[int, str, float]]:
        """(depth, target, R^2)."""
        return [(depth, name, value) for name, values in self.r2.items() for depth, value in enumerate(values)]

    def table(self) -> str:
        """Targets as columns, one line a depth."""
        head = f"{'layers':>6}" + "".join(f"{name:>18}" for name in self.r2)
        depths = zip(*self.r2.values(), strict=True)
        return "\n".join([head, *(f"{k:6}" + "".join(f"{x:18.4f}" for x in row) for k, row in enumerate(depths))])


def probe(model: Transformer, data: Plays, *, ridge: float = 1.0) -> Probes:
    """Probes of every layer on the same trajectories: three quarters of them to fit, the rest to measure.

    Raises:
        ValueError: a model of an MDP, which has no ridge regression, or fewer than 8 trajectories.
    """
    if isinstance(model.environment, TabularMDPConfig | GridWorldConfig):
        raise ValueError(f"environment.kind = {model.environment.kind}: expected a bandit, MDPs have no ridge estimate")
    if len(data.action) < 8:
        raise ValueError(f"{len(data.action)} trajectories: expected at least 8, some to fit and some to measure")
    wanted = targets(data, ridge)
    first = len(data.action) * 3 // 4
    found: dict[str, list[float]] = {name: [] for name in wanted}
    for h_BND in model.states(*data):
        x = h_BND[:, model.tokenizer.prediction].double().cpu().numpy()[:, : data.action.shape[1]]
        for name, y in wanted.items():
            found[name].append(r_squared(x[:first], y[:first], x[first:], y[first:]))
    return Probes({name: tuple(values) for name, values in found.items()}, first, len(data.action) - first)


def targets(data: Plays, ridge: float) -> dict[str, Array]:
    """What LinUCB computes before round t, each [B,T,k]: w_t [d], A_t^{-1} a_k [A d], A_t by its upper triangle."""
    actions = data.shown.double().numpy()
    played = np.take_along_axis(actions, data.action.numpy()[..., None], 1)
    outer, sums = played[..., :, None] * played[..., None, :], played * data.reward.double().numpy()[..., None]
    before = [np.concatenate([np.zeros_like(x[:, :1]), x[:, :-1].cumsum(1)], 1) for x in (outer, sums)]
    B, T, d = played.shape
    gram = before[0] + ridge * np.eye(d)
    inverse = np.linalg.inv(gram)
    estimate = np.einsum("btpq,btq->btp", inverse, before[1])
    directions = np.einsum("btpq,bkq->btkp", inverse, actions).reshape(B, T, -1)
    return {"ridge_estimate": estimate, "directions": directions, "gram": gram[..., *np.triu_indices(d)]}


def r_squared(x: Array, y: Array, x_held: Array, y_held: Array) -> float:
    """R^2 of the linear probe from x [B,T,D] to y [B,T,k], on the held-out trajectories; the mean over k."""
    quarter = len(x) - len(x) // 4
    fits = [(p, _score(_fit(x[:quarter], y[:quarter], p), x[quarter:], y[quarter:])) for p in PENALTIES]
    best = max(fits, key=lambda fit: fit[1])[0]
    return _score(_fit(x, y, best), x_held, y_held)


def _fit(x: Array, y: Array, penalty: float) -> tuple[Array, Array]:
    """Slopes [D,k] and intercepts [k] of ridge regression on standardised columns; constant ones count for nothing."""
    x, y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
    centre, spread = x.mean(0), x.std(0)
    scale = np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > 1e-9 * (1e-300 + np.abs(x).max(0)))
    z = (x - centre) * scale
    slopes = scale[:, None] * np.linalg.solve(z.T @ z + penalty * len(z) * np.eye(len(scale)), z.T @ (y - y.mean(0)))
    return slopes, y.mean(0) - centre @ slopes


def _score(fit: tuple[Array, Array], x: Array, y: Array) -> float:
    slopes, intercept = fit
    left = ((y - x @ slopes - intercept) ** 2).sum((0, 1))
    total = ((y - y.mean((0, 1))) ** 2).sum((0, 1))
    return float(np.mean(1 - left / total))


def draw(found: Probes, directory: Path, stem: str = "probe") -> list[Path]:
    """R^2 against depth as <stem>.png, .svg and .csv."""
    from matplotlib.figure import Figure

    from eval import style

    with style.settings():
        figure = Figure(figsize=(5.2, 3.6), layout="constrained")
        axes = figure.subplots()
        for (name, values), colour in zip(found.r2.items(), style.PALETTE, strict=False):
            axes.plot(range(len(values)), values, marker="o", markersize=3, color=colour, label=TARGETS[name])
        axes.set(xlabel="layers passed", ylabel="$R^2$ of a linear probe", ylim=(-0.05, 1.05))
        axes.legend(fontsize=8, loc="lower right")
        style.plain(axes)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("layers", "target", "r2"))
        writer.writerows(found.rows())
        return style.write(figure, text.getvalue().encode(), directory, stem)


@app.command()
def main(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Run directory, or one with model.safetensors.")],
    environments: Annotated[int, typer.Option(help="Trajectories, of LinUCB in fresh environments.")] = 256,
    ridge: Annotated[float, typer.Option(help="lambda of A_t and of the LinUCB that plays.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Key of the environments.")] = 12345,
) -> None:
    """Which layer carries the ridge estimate, A_t^{-1} a_k and A_t; writes DIR/figures/probe.{png,svg,csv}."""
    with cli.usage_errors():
        import icrl.checkpoint

        if not ridge > 0:
            raise ValueError(f"--ridge {ridge}: expected a positive number")
        if environments < 8:
            raise ValueError(f"--environments {environments}: expected at least 8")
        model = icrl.checkpoint.load(directory)
        if isinstance(model.environment, TabularMDPConfig | GridWorldConfig):
            raise ValueError(f"environment.kind = {model.environment.kind}: expected a bandit")
        data = plays(model.environment, LinUCBConfig(ridge=ridge), seed, environments)
        found = probe(model, data, ridge=ridge)
    cli.say(found.table())
    drawn = draw(found, directory / "figures")
    cli.say(f"\nR^2 on {found.held_out} held-out trajectories of LinUCB: {', '.join(map(str, drawn))}")


if __name__ == "__main__":
    app()
