"""The table of a sweep: one row a trial, read from the trials' run directories, as Parquet and CSV."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from cluster.sweep_file import VALIDATION_LOSS
from cluster.sweep_state import SweepDirectory, outcome
from eval.results import load, metrics
from icrl.board import read_records
from icrl.files import atomic_write, read_json
from icrl.hparams import short_names
from icrl.run_dir import RunDirectory

Row = dict[str, Any]

TIMES = ("seconds",)
"""Columns that differ between two runs of one sweep; all others are a function of the sweep file."""
_PARTS = ("backbone", "embedding", "position", "read_out", "total")


def sweep_rows(directory: Path) -> list[Row]:
    """One row for each trial of the sweep in `directory`, in the order of their numbers, finished or not.

    Columns: trial, the overrides by path, state (waiting, done, early, diverged, failed), step, parameters/<part>,
    train/validation_loss (the last one), the metrics of `eval.results`, error, seconds, directory. What a trial does
    not have (yet) is None. One whose results cannot be read has no metrics, and says so as its error.

    Raises:
        ValueError: there is no sweep.
    """
    sweep = SweepDirectory(directory)
    record = sweep.read()
    if record is None:
        raise ValueError(f"{directory}: expected a sweep's directory (with sweep.json)")
    rows = [_row(sweep.trial(entry["directory"]), entry, record["varied"]) for entry in record["trials"]]
    rows.sort(key=lambda row: row["trial"])
    columns = dict.fromkeys(column for row in rows for column in row)
    last = ("error", "seconds", "directory")
    ordered = [*(column for column in columns if column not in last), *last]
    return [{column: row.get(column) for column in ordered} for row in rows]


def last_validation(run: RunDirectory) -> tuple[int, float] | None:
    """Step and value of the last validation loss."""
    found = [
        (record["step"], record["tags"][VALIDATION_LOSS])
        for record in read_records(run.metrics)
        if VALIDATION_LOSS in record["tags"]
    ]
    return found[-1] if found else None


def _row(run: RunDirectory, entry: dict[str, Any], varied: list[str]) -> Row:
    kept = read_json(run.path / "trial.json") if (run.path / "trial.json").exists() else {}
    status, state = run.status(), outcome(run)
    row: Row = {"trial": entry["number"], **{path: entry["overrides"].get(path) for path in varied}, "state": state}
    row["step"] = status.get("step")
    row.update({f"parameters/{part}": kept.get("parameters", {}).get(part) for part in _PARTS})
    validation = last_validation(run)
    row[VALIDATION_LOSS] = validation[1] if validation else None
    row["error"] = status.get("error")
    if state == "done":
        try:
            results = load(run.results)
        except (ValueError, OSError) as error:  # the other trials are shown all the same
            row["error"] = str(error)
        else:
            row["expectations_met"] = results.passed
            row.update(metrics(results))
    row["seconds"] = kept.get("seconds")
    row["directory"] = f"trials/{entry['directory']}"
    return row


def write_table(directory: Path, rows: list[Row]) -> None:
    """Write table.csv and table.parquet to the sweep's directory, each atomically."""
    import pyarrow as pa
    from pyarrow import parquet

    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    columns = {name: _column([row[name] for row in rows]) for name in rows[0]}
    writer.writerows(dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
    atomic_write(directory / "table.csv", text.getvalue().encode())
    buffer = pa.BufferOutputStream()
    parquet.write_table(pa.table(columns), buffer)
    atomic_write(directory / "table.parquet", buffer.getvalue().to_pybytes())


def _column(values: list[Any]) -> list[Any]:
    """Values of one type: numbers stay numbers; lists, and columns of several kinds, become JSON."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float} or kinds in ({str}, {bool}):
        return values
    return [None if value is None else json.dumps(value, ensure_ascii=False) for value in values]


def ranked(rows: list[Row], metric: str, goal: str) -> list[Row]:
    """The finished rows that have the metric, best first; ties by trial number."""
    sign = 1 if goal == "minimize" else -1
    finished = [row for row in rows if row["state"] == "done" and row.get(metric) is not None]
    return sorted(finished, key=lambda row: (sign * row[metric], row["trial"]))


def text_table(rows: list[Row], varied: list[str], metric: str) -> str:
    """The rows for a terminal."""
    columns = ["trial", *varied, "parameters/backbone", "state", "step"]
    columns += list(dict.fromkeys([metric, "eval/test_log_loss", "eval/teacher_ratio", "eval/uniform_ratio"]))
    columns = [c for c in columns if c in rows[0] and any(row[c] is not None for row in rows)] + ["seconds"]
    names = short_names(varied) | {"parameters/backbone": "backbone"}
    cells = [[names.get(column, column.removeprefix("eval/")) for column in columns]]
    cells += [[_cell(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lines = ["  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) for line in cells]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
