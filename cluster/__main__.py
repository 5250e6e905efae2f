"""`python -m cluster COMMAND ...`: experiments on Ray."""

from __future__ import annotations

from cluster.commands.board import board
from cluster.commands.jobs import list_jobs, logs, status, stop
from cluster.commands.run import run
from cluster.commands.runs import runs
from cluster.commands.submit import submit
from cluster.commands.sweep import sweep
from icrl import cli

app = cli.application("Run experiments on Ray.")


@app.callback()
def commands() -> None:
    """Run experiments on Ray."""


app.command("run", context_settings=cli.LENIENT)(run)
app.command("sweep", context_settings=cli.LENIENT)(sweep)
app.command("submit", context_settings=cli.LENIENT)(submit)
app.command("status")(status)
app.command("logs")(logs)
app.command("stop")(stop)
app.command("list")(list_jobs)
app.command("board")(board)
app.add_typer(runs, name="runs")


if __name__ == "__main__":
    app()
