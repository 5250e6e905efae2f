"""What a sweep leaves: the table, the capacity figure and the board, made anew from the trials' run directories."""

from __future__ import annotations

from pathlib import Path

from cluster import sweep_figure
from cluster.sweep_board import write_sweep_board
from cluster.sweep_state import SweepDirectory
from cluster.sweep_table import Row, ranked, sweep_rows, text_table, write_table
from icrl.cli import say


def refresh(directory: Path) -> list[Row]:
    """Write the table, the figure once there is something to show, and the sweep's board; returns the rows."""
    rows = sweep_rows(directory)
    write_table(directory, rows)
    record = SweepDirectory(directory).read()
    assert record is not None
    metric, goal = record["sweep"]["metric"]["name"], record["sweep"]["metric"]["goal"]
    best = ranked(rows, metric, goal)
    figure = None
    if best:
        config = SweepDirectory(directory).trial(Path(best[0]["directory"]).name).config()
        figures = SweepDirectory(directory).figures
        figure = sweep_figure.draw(rows, record["varied"], metric, config, directory.name, figures)
    write_sweep_board(directory, rows, figure)
    return rows


def summary(directory: Path, rows: list[Row]) -> None:
    """Tell how the sweep ended, where everything is, and what to do next."""
    record = SweepDirectory(directory).read()
    assert record is not None
    metric, goal = record["sweep"]["metric"]["name"], record["sweep"]["metric"]["goal"]
    say()
    say(text_table(rows, record["varied"], metric))
    say()
    for row in rows:
        if row["state"] in ("failed", "diverged") or (row["state"] == "done" and row["error"]):
            say(f"trial {row['trial']} {row['state']}: {row['error']}")
    say(f"table           {directory / 'table.parquet'} (and .csv)")
    best = ranked(rows, metric, goal)
    if not best:
        return
    say(f"figure          {directory / 'figures' / 'capacity.png'}")
    say(f"board           python -m cluster board {directory}")
    first = best[0]
    say(f"best            trial {first['trial']}: {metric} = {first[metric]:.4g} in {directory / first['directory']}")
