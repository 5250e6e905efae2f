"""What each construction takes: L, M, D, D', norm and measured error as its problem grows, beside the theorem's rates.

`python -m benchmarks capacity` writes docs/theory/capacity-*.csv and capacity-*.png, a pair for each kind of problem.
A construction is a `Family`: how it is built at a size, the algorithm it must be, and what its theorem says.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator
from torch import Tensor

from eval import style
from eval.plays import Plays, plays
from icrl import algorithms, envs
from icrl.config import AlgorithmConfig, EnvironmentConfig, LinearBanditConfig, LinUCBConfig
from icrl.constructions import Construction, linucb
from icrl.streams import Split

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "theory"
SEED, TRAJECTORIES, TOLERANCE = 7, 2, 1e-2
QUANTITIES = ("L", "M", "D", "D'", "norm")

Size = Mapping[str, int]
Row = dict[str, Any]


@dataclass(frozen=True)
class Family:
    """A construction whose problem grows."""

    name: str
    kind: str
    """Families of one kind share a figure."""
    base: Size
    """Symbol -> size where it does not grow."""
    sweeps: Mapping[str, tuple[int, ...]]
    """Symbol -> its sizes."""
    environment: Callable[[Size], EnvironmentConfig]
    build: Callable[[Size], Construction]
    exact: AlgorithmConfig
    """The algorithm, whose log-probabilities along its own plays the construction must have."""
    theorem: Mapping[str, Mapping[str, float]]
    """Symbol -> quantity -> exponent in the theorem, logarithms left out."""
    tolerance: float
    """Largest error that counts as a success."""


def _bandit(size: Size) -> LinearBanditConfig:
    return LinearBanditConfig(dim=size["d"], n_actions=size["A"], horizon=size["T"])


def _linucb(method: Any) -> Family:
    return Family(
        name=f"LinUCB, {method}",
        kind="bandits",
        base={"T": 40, "A": 3, "d": 2},
        sweeps={"T": (10, 20, 40, 80, 160), "A": (2, 4, 8, 16, 32), "d": (1, 2, 4, 8)},
        environment=_bandit,
        build=lambda size: linucb(_bandit(size), method=method, tolerance=TOLERANCE),
        exact=LinUCBConfig(temperature=1.0),
        # Thm 8 with B_a^2 = d: L = O(sqrt(T B_a^2)), M <= 4A, D = O(dA), D' = O(d + A sqrt(T)), norm O(A + T sqrt(d))
        theorem={
            "T": {"L": 0.5, "M": 0, "D": 0, "D'": 0.5, "norm": 1},
            "A": {"L": 0, "M": 1, "D": 1, "D'": 1, "norm": 1},
            "d": {"L": 0.5, "M": 0, "D": 1, "D'": 1, "norm": 0.5},
        },
        tolerance=TOLERANCE,
    )


FAMILIES = (_linucb("paper"), _linucb("log_depth"))


def run(quick: bool) -> dict[str, Any]:  # noqa: FBT001 - the signature of every benchmark
    """`rows`, one a construction, `exponents`, fitted beside the theorem's; quick: two sizes each, nothing written."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = [row for family in FAMILIES for row in rows(family, quick=quick)]
    finally:
        torch.set_num_threads(threads)
    fits = [fit for family in FAMILIES for fit in exponents(family, found)]
    if not quick:
        for kind in dict.fromkeys(family.kind for family in FAMILIES):
            write(kind, found, fits)
    bounds = {family.name: family.tolerance for family in FAMILIES}
    return {"rows": found, "exponents": fits, "passed": all(row["error"] <= bounds[row["family"]] for row in found)}


def rows(family: Family, *, quick: bool = False) -> Iterator[Row]:
    """Sizes and error at every size of every sweep."""
    for symbol, sizes in family.sweeps.items():
        for size in sizes[:2] if quick else sizes:
            point = dict(family.base) | {symbol: size}
            model = family.build(point)
            report = model.report
            yield {
                "family": family.name,
                "kind": family.kind,
                "symbol": symbol,
                "size": size,
                "L": report.layers,
                "M": report.heads,
                "D": report.embed_dim,
                "D'": report.mlp_dim,
                "norm": report.operator_norm,
                "nonzeros": report.nonzeros,
                "error": error(model, family, point),
                "theorem_L": report.theorem.get("layers"),
            }


@torch.no_grad()
def error(model: Construction, family: Family, size: Size) -> float:
    """Largest |difference of log p| from the exact algorithm, along its own plays."""
    environment = family.environment(size)
    data = plays(environment, family.exact, SEED, TRAJECTORIES)
    found = model(*data).double().log_softmax(-1)
    return float((found - log_probabilities(environment, family.exact, data)).abs().max())


def log_probabilities(environment: EnvironmentConfig, config: AlgorithmConfig, data: Plays) -> Tensor:
    """log Alg(. | D_{t-1}, s_t) [B,T,A] along plays of `eval.plays` under SEED."""
    algorithm = algorithms.build(config, environment)
    algorithm.reset(envs.sample(environment, SEED, Split.EVAL, np.arange(len(data.action), dtype=np.int64)))
    out = []
    for t in range(environment.horizon):
        algorithm.observe(None if data.shown.is_floating_point() else data.shown[:, t].numpy())
        out.append(np.log(algorithm.probabilities()))
        algorithm.update(data.action[:, t].numpy(), data.reward[:, t].numpy())
    return torch.from_numpy(np.stack(out, 1))


def exponents(family: Family, found: list[Row]) -> Iterator[Row]:
    """Least-squares slopes of ln quantity against ln size, the theorem's exponent beside them."""
    for symbol, theorem in family.theorem.items():
        points = [row for row in found if (row["family"], row["symbol"]) == (family.name, symbol)]
        own = {"theorem_L": "L"} if points[0]["theorem_L"] else {}
        for quantity, of in {**{q: q for q in QUANTITIES}, **own}.items():
            slope = np.polyfit([math.log(p["size"]) for p in points], [math.log(p[quantity]) for p in points], 1)[0]
            yield {
                "family": family.name,
                "kind": family.kind,
                "symbol": symbol,
                "quantity": quantity,
                "fitted": round(float(slope), 3) + 0.0,
                "theorem": theorem[of],
            }


def write(kind: str, found: list[Row], fits: list[Row]) -> None:
    """capacity-<kind>.csv, capacity-<kind>-exponents.csv and capacity-<kind>.png."""
    for name, table_rows in ((f"capacity-{kind}.csv", found), (f"capacity-{kind}-exponents.csv", fits)):
        chosen = [row for row in table_rows if row["kind"] == kind]
        with (FOLDER / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, list(chosen[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(chosen)
    with style.settings():
        figure(kind, found).savefig(FOLDER / f"capacity-{kind}.png", dpi=110, metadata={"Software": None})


def figure(kind: str, found: list[Row]) -> Figure:
    """One column a symbol, one row a quantity; dotted: the theorem's exponent, from the first family's first point."""
    families = [family for family in FAMILIES if family.kind == kind]
    symbols = list(dict.fromkeys(symbol for family in families for symbol in family.sweeps))
    out = Figure(figsize=(3.1 * len(symbols), 11), layout="constrained", facecolor="white")
    panels = out.subplots(len(QUANTITIES) + 1, len(symbols), squeeze=False)
    for column, symbol in enumerate(symbols):
        for axes, quantity in zip(panels[:, column], (*QUANTITIES, "error"), strict=True):
            for family, colour in zip(families, style.PALETTE, strict=False):
                points = [row for row in found if (row["family"], row["symbol"]) == (family.name, symbol)]
                x, y = [row["size"] for row in points], [row[quantity] for row in points]
                axes.loglog(x, y, marker="o", markersize=3, color=colour, label=family.name)
                exponent = family.theorem.get(symbol, {}).get(quantity)
                if family is families[0] and exponent is not None:
                    line = [y[0] * (size / x[0]) ** exponent for size in x]
                    axes.loglog(x, line, ":", color=style.QUIET, label="the theorem's exponent")
            sizes = sorted({row["size"] for row in found if row["kind"] == kind and row["symbol"] == symbol})
            _finish(axes, symbol, sizes, "max |Δ log p|" if quantity == "error" else quantity)
    panels[0, 0].legend(fontsize=6.5)
    return out


def _finish(axes: Axes, symbol: str, sizes: list[int], label: str) -> None:
    axes.set(xlabel=symbol, ylabel=label)
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    low, high = axes.get_ylim()
    if high < 10 * low:  # a flat line is flat
        middle = math.sqrt(low * high)
        axes.set_ylim(middle / math.sqrt(10), middle * math.sqrt(10))
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=6))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_formatter(NullFormatter())
        axis.set_minor_locator(NullLocator())
    style.plain(axes)


def table(result: dict[str, Any]) -> str:
    """Sizes and errors, then exponents."""
    lines = [f"{'construction':20}{'':>5}{'L':>6}{'M':>6}{'D':>6}{QUANTITIES[3]:>7}{'norm':>10}{'error':>11}"]
    for row in result["rows"]:
        at = f"{row['symbol']}={row['size']}"
        sizes = f"{row['L']:6}{row['M']:6}{row['D']:6}{row[QUANTITIES[3]]:7}{row['norm']:10.4g}{row['error']:11.2e}"
        lines.append(f"{row['family']:20}{at:>5}{sizes}")
    lines.append(f"\n{'exponents':20}{'':>5}{'of':>12}{'fitted':>10}{'theorem':>10}")
    for fit in result["exponents"]:
        lines.append(
            f"{fit['family']:20}{fit['symbol']:>5}{fit['quantity']:>12}{fit['fitted']:10.2f}{fit['theorem']:10.2f}"
        )
    return "\n".join(lines)
