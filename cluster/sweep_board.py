"""The board of a whole sweep: one run, `<sweep>/sweep`, that shows the table and the figure of all trials.

Each trial has a run of its own, written by `icrl.board`; `icrl.board.choose_hparams(run, overrides)`, called once a
trial's run directory is there, makes it show what the sweep varies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from icrl.board import settle, write_snapshot
from icrl.hparams import METRICS, short_names
from icrl.masking import mask
from icrl.run_dir import RunDirectory

NAME = "sweep"
"""Directory of the sweep's own event file, and the run's name on the board."""

_WAITING, _EARLY = "waiting", "early"
"""States of a row: not ended yet, and stopped by early_terminate."""
_RESULTS = ("parameters/total", *METRICS, "eval/test_log_loss")
"""Columns that are shown where some trial has them; the table's files hold the others."""


def write_sweep_board(directory: Path, rows: Sequence[Mapping[str, object]], figure: Path | None) -> None:
    """Write the sweep's run, or replace it by one that shows how things stand now; call it as trials end.

    Rows are those of `cluster.sweep_table.sweep_rows(directory)`: trial, then the overrides that vary by their path in
    the config, then state, step, parameters/<part>, metrics by tag, error and directory (relative to the sweep); what a
    trial does not have is None. `figure` is a PNG file (capacity against generalisation error), None or absent as long
    as there is none. Trials that have ended without closing their own boards are closed too.
    """
    ended = 0
    for row in rows:
        if row["state"] != _WAITING:
            ended += 1
            # a trial that died has not closed its board; one that was stopped early has done its part
            settle(RunDirectory(directory / str(row["directory"])), "SUCCESS" if row["state"] == _EARLY else None)
    heading = f"{ended} of {len(rows)} trials have ended"
    images = {"eval/capacity_figure": figure} if figure is not None and figure.is_file() else {}
    write_snapshot(directory / NAME, ended, {"eval/trials": f"{heading}\n\n{markdown(rows)}"}, images)


def markdown(rows: Sequence[Mapping[str, object]]) -> str:
    """The rows as a Markdown table: a trial, what varies, its state, its size and its results."""
    if not rows:
        return ""
    columns = list(rows[0])
    varied = columns[columns.index("trial") + 1 : columns.index("state")]
    shown = [column for column in _RESULTS if any(row.get(column) is not None for row in rows)]
    names = short_names(varied) | {column: column.rpartition("/")[2] for column in shown}
    names["parameters/total"] = "parameters"
    order = ["trial", *varied, "state", "step", *shown]
    lines = [[names.get(column, column) for column in order], ["---" for _ in order]]
    lines += [[_cell(column, row.get(column)) for column in order] for row in rows]
    table = [f"| {' | '.join(cells)} |" for cells in lines]
    # below the table: long texts in it would squeeze every other column until its words break
    errors = [f"- trial {row['trial']}: {_cell('error', row['error'])}" for row in rows if row.get("error")]
    return "\n".join([*table, "", *errors] if errors else table)


def _cell(column: str, value: object) -> str:
    value = mask(value, column)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool) and column != "trial":
        return f"{value:,}"
    return " ".join(str(value).split()).replace("|", "\\|")
