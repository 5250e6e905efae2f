"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        envvar="RAY_ADDRESS",
        metavar="HOST:PORT",
        help="A running Ray to work on, or auto inside a Ray job; without it the command starts one of its own.",
    ),
]
DashboardAddress = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="URL",
        help="The cluster's dashboard; by default $RAY_API_SERVER_ADDRESS, or http://127.0.0.1:8265.",
    ),
]
PlainHttp = Annotated[
    bool, typer.Option("--allow-plain-http", help="Send the token unencrypted to another machine all the same.")
]
