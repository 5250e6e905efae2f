"""The figure of an evaluation: regret against the round, as PNG, SVG and the numbers as CSV.

A function of the results alone, without pyplot's global state, so that the same results give the same bytes.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from eval import style
from eval.line_up import TRANSFORMER, Role
from eval.regret import Z_95, Ratio
from eval.results import Curve, Results, is_uniform
from eval.style import INK, PALETTE, QUIET

STEM = "regret"

_LEFT, _BETWEEN = 0.05, 0.05
"""Fractions of the width, left of the first panel and of the second one's axis."""

_LONGEST = 34
"""Characters of a name in the figure; the CSV has all of it."""

_COLOURS = {"transformer": "#D55E00", "teacher": "#0072B2"}
_UNIFORM = "#767676"
_DASHES: tuple[tuple[int, tuple[float, ...]], ...] = (
    (0, (6, 2)),
    (0, (1.5, 1.5)),
    (0, (7, 2, 1.5, 2)),
    (0, (3, 1.5)),
    (0, (7, 2, 1.5, 2, 1.5, 2)),
    (0, (10, 3)),
)
_LEADER: dict[str, object] = {"arrowstyle": "-", "linewidth": 0.7, "shrinkA": 1, "shrinkB": 1}


@dataclass(frozen=True)
class _Line:
    name: str
    role: Role
    colour: str
    dash: str | tuple[int, tuple[float, ...]]

    @property
    def emphasised(self) -> bool:
        return self.role == "transformer"


NAMES = ("regret.png", "regret.svg", "regret.csv")
"""The files of the regret figure."""


def draw(results: Results, directory: Path) -> list[Path]:
    """Write regret.png, regret.svg and regret.csv to the directory, each atomically."""
    with style.settings():
        return style.write(_figure(results), _csv(results), directory, STEM)


def _csv(results: Results) -> bytes:
    """One line for each quantity, round and algorithm."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("quantity", "t", "algorithm", "mean", "se"))
    for name, result in results.ordered():
        for quantity, curve in (("cumulative_regret", result.regret), ("suboptimality", result.suboptimality)):
            for t, (mean, error) in enumerate(zip(curve.mean, curve.standard_error, strict=True), 1):
                writer.writerow((quantity, t, name, mean, error))
    return text.getvalue().encode()


def _figure(results: Results) -> Figure:
    lines = _lines(results)
    figure = Figure(figsize=(10.5, 4.8), facecolor="white")
    # the margin right of each panel holds the names of its curves
    margin = 0.03 + 0.0068 * max(len(_label(line)) for line in lines)
    width = (1 - _LEFT - _BETWEEN - 2 * margin) / 2
    left = figure.add_axes((_LEFT, 0.17, width, 0.6))
    right = figure.add_axes((_LEFT + width + margin + _BETWEEN, 0.17, width, 0.6))
    _panel(left, "Cumulative regret", lines, [results.algorithms[line.name].regret for line in lines])
    left.set_ylim(0, _top(results, lines))
    right.set_yscale("log")
    suboptimality = [results.algorithms[line.name].suboptimality for line in lines]
    _panel(right, "Suboptimality in each round (log scale)", lines, suboptimality)
    right.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    right.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    right.yaxis.set_minor_formatter(NullFormatter())
    for axes in (left, right):
        _label_ends(axes, lines)
    question, answer = _headline(results)
    figure.text(_LEFT, 0.935, question, fontsize=13, fontweight="bold", color=INK)
    figure.text(_LEFT, 0.88, answer, fontsize=10, color=INK)
    figure.text(_LEFT, 0.03, _caption(results), fontsize=8, color=QUIET)
    return figure


def _top(results: Results, lines: list[_Line]) -> float | None:
    """Where the regret axis ends: uniform play leaves it where it would press all others to the ground."""
    ends = {line.name: results.algorithms[line.name].final_regret for line in lines}
    learning = max(end for name, end in ends.items() if not is_uniform(results.algorithms[name]))
    return 1.3 * learning if 0 < 2 * learning < max(ends.values()) else None


def _lines(results: Results) -> list[_Line]:
    """What is drawn: all but the optimal reference, which lies on the axis."""
    lines = []
    others = 0
    for name, result in results.ordered():
        algorithm = result.config["algorithm"] if result.config is not None else TRANSFORMER
        if algorithm == "optimal" and result.role == "reference":
            continue
        if result.role in _COLOURS:
            lines.append(_Line(name, result.role, _COLOURS[result.role], "solid"))
        elif algorithm == "uniform":
            lines.append(_Line(name, result.role, _UNIFORM, (0, (2, 2))))
        else:
            lines.append(_Line(name, result.role, PALETTE[others % len(PALETTE)], _DASHES[others % len(_DASHES)]))
            others += 1
    return lines


def _panel(axes: Axes, title: str, lines: list[_Line], curves: list[Curve]) -> None:
    """Curves with their 95 % bands; the transformer lies on top."""
    for order, (line, curve) in enumerate(zip(lines, curves, strict=True)):
        mean, half = np.array(curve.mean), Z_95 * np.array(curve.standard_error)
        low = mean - half
        if axes.get_yscale() == "log":
            # a mean or a bound at or below 0 has no place on the axis: the line breaks, the band ends at its smallest
            mean = np.where(mean > 0, mean, np.nan)
            low = np.maximum(low, 0.05 * mean)
        rounds = np.arange(1, len(mean) + 1)
        level = 50.0 if line.emphasised else 20.0 - order
        axes.fill_between(rounds, low, mean + half, color=line.colour, alpha=0.16, linewidth=0, zorder=level - 15)
        width = 2.6 if line.emphasised else 1.5
        axes.plot(
            rounds,
            mean,
            color=line.colour,
            linestyle=line.dash,
            linewidth=width,
            zorder=level,
            gid=f"curve-{line.name}",
        )
    axes.set_title(title, loc="left", fontsize=10, color=INK, pad=10)
    axes.set_xlabel("round t", color=INK)
    axes.set_xlim(1, max(2, len(curves[0].mean)))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    style.plain(axes)


def _label_ends(axes: Axes, lines: list[_Line], gap: float = 0.062) -> None:
    """Name every curve at its right end; labels that would touch are moved apart and keep their order.

    A curve that leaves the panel above is named at the top, with where it ends.
    """
    ends = []
    for line, drawn in zip(lines, axes.get_lines(), strict=True):
        values = np.asarray(drawn.get_ydata(), np.float64)
        tail = values[-max(1, len(values) // 10) :]
        tail = tail[np.isfinite(tail)]
        if len(tail):
            x, end = float(np.asarray(drawn.get_xdata())[-1]), float(tail[-1])
            height = axes.transAxes.inverted().transform(axes.transData.transform((x, end)))[1]
            outside = height > 1
            ends.append((min(float(height), 1.0), line, f"{_label(line)} ↑ {end:.3g}" if outside else _label(line)))
    ends.sort(key=lambda item: item[0])
    places = _spread([height for height, _, _ in ends], gap)
    for (height, line, text), place in zip(ends, places, strict=True):
        axes.annotate(
            text,
            xy=(1.0, height),
            xytext=(1.045, place),
            xycoords="axes fraction",
            textcoords="axes fraction",
            va="center",
            fontsize=8.5,
            color=line.colour,
            fontweight="bold" if line.emphasised else "normal",
            arrowprops=None if text != _label(line) else _LEADER | {"color": line.colour},
        )


def _label(line: _Line) -> str:
    """The curve's name, cut where it would leave the panels no room."""
    suffix = " (teacher)" if line.role == "teacher" else ""
    return _short(line.name, _LONGEST - len(suffix)) + suffix


def _short(name: str, room: int = _LONGEST) -> str:
    return name if len(name) <= room else f"{name[: room - 1]}…"


def _spread(heights: list[float], gap: float) -> list[float]:
    """Ascending heights moved to be at least `gap` apart: neighbours that touch share the shift."""
    groups = [[height] for height in heights]
    centres = list(heights)
    i = 0
    while i < len(groups) - 1:
        reach = gap * (len(groups[i]) + len(groups[i + 1])) / 2
        if centres[i + 1] - centres[i] < reach:
            groups[i] += groups.pop(i + 1)
            centres.pop(i + 1)
            centres[i] = float(np.mean(groups[i]))
            i = max(0, i - 1)
        else:
            i += 1
    return [
        centre + gap * (position - (len(group) - 1) / 2)
        for centre, group in zip(centres, groups, strict=True)
        for position in range(len(group))
    ]


def _headline(results: Results) -> tuple[str, str]:
    """The question the figure answers, and the answer."""
    regret = f"final regret {results.algorithms[TRANSFORMER].final_regret:.2f}"
    if results.teacher is not None and results.teacher_ratio is not None:
        return (
            "Does the transformer do as well in context as the algorithm it imitates?",
            f"Transformer: {regret}, {_times(results.teacher_ratio)} that of its teacher, {_short(results.teacher)}",
        )
    answer = "" if results.uniform_ratio is None else f", {_times(results.uniform_ratio)} that of uniform play"
    return "Does the transformer learn in context?", f"Transformer: {regret}{answer}"


def _times(ratio: Ratio) -> str:
    return f"{ratio.value:.2f} times (95 % interval {ratio.low:.2f} to {ratio.high:.2f})"


def _caption(results: Results) -> str:
    return (
        f"{results.name}: mean over {results.environments:,} fresh environments, the same for all "
        f"(seed {results.settings['seed']}), horizon {results.horizon}; bands: 95 % confidence (1.96 standard errors)."
    )
