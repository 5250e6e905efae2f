"""`python -m cluster COMMAND ...`: experiments on Ray."""

from __future__ import annotations

from cluster.commands.run import run
from icrl import cli

app = cli.application("Run experiments on Ray.")


@app.callback()
def commands() -> None:
    """Run experiments on Ray."""


app.command("run", context_settings=cli.LENIENT)(run)


if __name__ == "__main__":
    app()
