"""The figure of a sweep: capacity against generalisation error, mean and interval over seeds, as PNG, SVG and CSV."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator
from scipy.stats import t as student

from cluster.sweep_file import VALIDATION_LOSS
from cluster.sweep_table import Row
from cluster.sweep_trials import text_of
from eval import style
from eval.style import INK, PALETTE, QUIET
from icrl.config import Config

STEM = "capacity"
CAPACITY = "parameters/backbone"

_MOST_SERIES = 6
_TEST_LOSS = "eval/test_log_loss"
_TITLES = {
    _TEST_LOSS: "test log-loss, nats a round",
    VALIDATION_LOSS: "validation log-loss, nats a round",
    "eval/teacher_ratio": "final regret, as a multiple of the teacher's",
    "eval/uniform_ratio": "final regret, as a multiple of uniform play's",
    "eval/regret_final": "final regret",
    "eval/agreement": "share of rounds with the teacher's action",
}
_BENCHMARKS = {"eval/teacher_ratio": "the teacher", "eval/uniform_ratio": "uniform play"}


@dataclass(frozen=True)
class Point:
    """Trials that differ in their seeds alone."""

    series: str
    """What varies beside the model's size and the seeds."""
    model: str
    capacity: int
    values: tuple[float, ...]
    trials: tuple[int, ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    @property
    def half(self) -> float | None:
        """Half the 95 % t-interval of the mean over seeds; None of one seed."""
        n = len(self.values)
        if n < 2:
            return None
        return float(student.ppf(0.975, n - 1) * np.std(self.values, ddof=1) / math.sqrt(n))


def points(rows: Sequence[Row], varied: Sequence[str], metric: str) -> list[Point]:
    """The finished trials in groups, by series and then by capacity."""
    groups: dict[tuple[str, str, int], list[Row]] = {}
    for row in rows:
        if row["state"] == "done" and row.get(metric) is not None:
            given = {path: row[path] for path in varied if row[path] is not None and not is_seed(path)}
            model = text_of({path: value for path, value in given.items() if path.startswith("model.")})
            series = text_of({path: value for path, value in given.items() if not path.startswith("model.")})
            groups.setdefault((series, model, row[CAPACITY]), []).append(row)
    found = [
        Point(series, model, capacity, tuple(row[metric] for row in group), tuple(row["trial"] for row in group))
        for (series, model, capacity), group in groups.items()
    ]
    order = list(dict.fromkeys(point.series for point in found))
    return sorted(found, key=lambda point: (order.index(point.series), point.capacity, point.model))


def is_seed(path: str) -> bool:
    """Whether a parameter only repeats a trial."""
    return path.rpartition(".")[2] == "seed"


def draw(rows: Sequence[Row], varied: Sequence[str], metric: str, config: Config, name: str, directory: Path) -> Path:
    """Write capacity.png, .svg and .csv to the directory; returns the PNG's path.

    Where the validation loss is the metric it chooses, and what is drawn is the test log-loss, if there is one.
    """
    if metric == VALIDATION_LOSS and any(row.get(_TEST_LOSS) is not None for row in rows):
        metric = _TEST_LOSS
    companion = next(
        (
            tag
            for tag in ("eval/teacher_ratio", "eval/uniform_ratio", _TEST_LOSS)
            if tag != metric and any(row.get(tag) is not None for row in rows)
        ),
        None,
    )
    panels = [(tag, points(rows, varied, tag)) for tag in (metric, companion) if tag is not None]
    with style.settings():
        written = style.write(_figure(panels, config, name), _csv(panels), directory, STEM)
    return next(path for path in written if path.suffix == ".png")


def _csv(panels: Sequence[tuple[str, Sequence[Point]]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("metric", "series", "model", CAPACITY, "seeds", "mean", "low", "high", "values", "trials"))
    for metric, found in panels:
        for p in found:
            low, high = (None, None) if p.half is None else (p.mean - p.half, p.mean + p.half)
            values, trials = json.dumps(p.values), json.dumps(p.trials)
            writer.writerow((metric, p.series, p.model, p.capacity, len(p.values), p.mean, low, high, values, trials))
    return text.getvalue().encode()


def _figure(panels: Sequence[tuple[str, Sequence[Point]]], config: Config, name: str) -> Figure:
    figure = Figure(figsize=(10.5, 5.0), facecolor="white")
    series = list(dict.fromkeys(point.series for _, found in panels for point in found))
    colours = dict(zip(series[:_MOST_SERIES], ("#D55E00", "#0072B2", *PALETTE), strict=False))
    width = 0.40 if len(panels) == 2 else 0.86
    for number, (metric, found) in enumerate(panels):
        axes = figure.add_axes((0.065 + number * 0.5, 0.185, width, 0.555))
        _panel(axes, metric, found, colours, config)
    figure.text(0.065, 0.935, _question(panels[0][1]), fontsize=13, fontweight="bold", color=INK)
    figure.text(0.065, 0.885, _answer(panels[0][0], panels[0][1]), fontsize=10, color=INK)
    _legend(figure, series, colours)
    figure.text(0.065, 0.025, _caption(panels, name), fontsize=8, color=QUIET)
    return figure


def _legend(figure: Figure, series: Sequence[str], colours: dict[str, str]) -> None:
    """The names of the series in a line above the panels, each in its colour."""
    if len(series) < 2:
        return
    x = 0.065
    for label, colour in colours.items():
        text = label or "otherwise"
        figure.text(x, 0.838, f"● {text}", fontsize=9, color=colour)
        x += 0.035 + 0.0075 * len(text)
    if len(series) > len(colours):
        figure.text(x, 0.838, f"● {len(series) - len(colours)} others", fontsize=9, color="#bbbbbb")


def _panel(axes: Axes, metric: str, found: Sequence[Point], colours: dict[str, str], config: Config) -> None:
    if not found:
        axes.set_axis_off()
        return
    axes.set_xscale("log")
    values = [value for point in found for value in point.values]
    if min(values) > 0 and max(values) > 3 * min(values):
        axes.set_yscale("log")
    capacities = sorted({point.capacity for point in found})
    spread = (capacities[-1] / capacities[0]) ** 0.012 if len(capacities) > 1 else 1.02
    shift = {label: spread ** (i - (len(colours) - 1) / 2) for i, label in enumerate(colours)}
    for label in dict.fromkeys(point.series for point in found):
        own = [point for point in found if point.series == label]
        colour = colours.get(label, "#bbbbbb")
        x = np.array([point.capacity * shift.get(label, 1.0) for point in own])
        for place, point in zip(x, own, strict=True):
            beside = [place * spread**0.7] * len(point.values)
            axes.plot(beside, point.values, "o", color=colour, alpha=0.45, markersize=3.5, mew=0, zorder=5)
            if point.half is not None:
                low = point.mean - point.half
                if axes.get_yscale() == "log":
                    low = max(low, 0.5 * min(point.values))
                axes.plot([place, place], [low, point.mean + point.half], color=colour, linewidth=1.4, zorder=3)
        axes.plot(
            x, [p.mean for p in own], "o-", color=colour, linewidth=1.8, markersize=5.5, zorder=4, gid=f"series-{label}"
        )
    if metric in _BENCHMARKS:
        axes.axhline(1.0, color="#999999", linewidth=1.0, linestyle=(0, (4, 3)), zorder=1)
        axes.annotate(
            _BENCHMARKS[metric], (1.0, 1.0), xycoords=("axes fraction", "data"), xytext=(-2, 3),
            textcoords="offset points", ha="right", fontsize=8, color=QUIET,
        )  # fmt: skip
    _ticks(axes, capacities)
    axes.set_title(_title(metric, config), loc="left", fontsize=10, color=INK, pad=10)
    axes.set_xlabel("capacity: parameters of the backbone (log scale)", color=INK)
    style.plain(axes)


def _ticks(axes: Axes, capacities: Sequence[int]) -> None:
    """Ticks at the capacities themselves while they are few enough to be told apart."""
    low, high = capacities[0], capacities[-1]
    margin = (high / low) ** 0.08 if high > low else 1.5
    axes.set_xlim(low / margin, high * margin)
    ratios = [later / earlier for earlier, later in itertools.pairwise(capacities)]
    if len(capacities) <= 8 and all(math.log(r) > 0.09 * math.log(high / low) for r in ratios):
        axes.set_xticks(list(capacities))
    else:
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _thousands(value)))
    axes.xaxis.set_minor_locator(NullLocator())
    if axes.get_yscale() == "log":
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def _thousands(value: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"


def _title(metric: str, config: Config) -> str:
    title = _TITLES.get(metric, metric)
    teacher = config.teacher()
    if "log_loss" in metric or metric == "train/validation_loss":
        # a teacher that never draws has itself a log-loss of 0, so that all of the transformer's is excess
        certain = teacher is not None and (
            teacher.algorithm == "empirical_mean" or (teacher.algorithm == "linucb" and teacher.temperature == 0)
        )
        title += " (all of it excess: the teacher's is 0)" if certain else ""
    return title[0].upper() + title[1:]


def _question(found: Sequence[Point]) -> str:
    if len({point.capacity for point in found}) > 1:
        return "How does the error change with the transformer's capacity?"
    return "How do the trials compare at one capacity?"


def _answer(metric: str, found: Sequence[Point]) -> str:
    if not found:
        return "No trial has finished"
    title = _TITLES.get(metric, metric)
    first, last = (sorted(found, key=lambda p: p.capacity)[i] for i in (0, -1))
    if first.capacity == last.capacity:
        return f"{title.capitalize()}: {_range_text(min(p.mean for p in found), max(p.mean for p in found))}"
    best_small = _mean_at(found, first.capacity)
    best_large = _mean_at(found, last.capacity)
    return (
        f"{title[0].upper() + title[1:]}: {_value(best_small)} at {_thousands(first.capacity)} parameters, "
        f"{_value(best_large)} at {_thousands(last.capacity)}"
    )


def _mean_at(found: Sequence[Point], capacity: int) -> Point:
    at = [point for point in found if point.capacity == capacity]
    return min(at, key=lambda point: point.mean)


def _value(point: Point) -> str:
    return f"{point.mean:.3g}" + (f" ± {point.half:.1g}" if point.half is not None else "")


def _range_text(low: float, high: float) -> str:
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"


def _caption(panels: Sequence[tuple[str, Sequence[Any]]], name: str) -> str:
    found = panels[0][1]
    seeds = sorted({len(point.values) for point in found}) or [0]
    count = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    interval = "bars: 95 % t-interval of the mean over seeds" if seeds[-1] > 1 else "one seed: no interval"
    total = sum(len(point.values) for point in found)
    return f"{name}: {total} trials, {count} seeds a point (faint: each of them); {interval}."
