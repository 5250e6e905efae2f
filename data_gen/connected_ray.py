"""A Ray that others started: connect to it, and leave it as it was found."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator, Mapping
from typing import Any

from data_gen.local_ray import QUIET, terminating

_PATIENCE_S = 5.0
_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray in the entrypoint of a job, with the runtime environment that the job was submitted with."""


def inside_job() -> bool:
    """Whether this process is the entrypoint of a Ray job."""
    return _JOB in os.environ


@contextlib.contextmanager
def connected(address: str, runtime_env: Mapping[str, Any], *, verbose: bool = False) -> Iterator[None]:
    """Connect to the Ray at `address` (HOST:PORT of its head, or auto) while the block runs; SIGTERM ends the block.

    `runtime_env` is what the workers need; inside a job the job's own holds, and this one is not used.

    Raises:
        ValueError: no cluster answers there, or it does not take this process's token.
    """
    address = _resolved(address)
    inside = inside_job()
    # workers of a job do not inherit the driver's address; without it, what they ask of Ray meets any cluster they find
    variables = {"RAY_ADDRESS": address} | ({} if inside else QUIET)
    settings: dict[str, Any] = {} if inside else dict(runtime_env)
    settings["env_vars"] = variables | settings.get("env_vars", {})
    os.environ.update({name: value for name, value in QUIET.items() if name not in os.environ})
    import ray

    with terminating():
        try:
            ray.init(
                address=address,
                runtime_env=settings,
                logging_level=logging.INFO if verbose else logging.ERROR,
                log_to_driver=verbose,
            )
        except (ConnectionError, ray.exceptions.RaySystemError) as error:
            raise ValueError(_refused(address)) from error
        try:
            yield
        finally:
            ray.shutdown()


def _resolved(address: str) -> str:
    """HOST:PORT of a head that listens."""
    if "://" in address:
        raise ValueError(
            f"--address {address}: expected HOST:PORT of a Ray head, or auto; a job is sent to the address of a "
            f"dashboard with: python -m cluster submit --address {address} -- run CONFIG"
        )
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", "")
        if not address:
            raise ValueError("--address auto: expected RAY_ADDRESS, as inside a Ray job; give HOST:PORT of a Ray head")
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"--address {address}: expected HOST:PORT of a Ray head (ray start prints it)")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE_S).close()
    except OSError as error:
        raise ValueError(
            f"--address {address}: no Ray cluster answers there ({error.strerror or error}); start one with "
            "ray start --head, or leave --address out for a Ray of this command's own"
        ) from None
    return address


def _refused(address: str) -> str:
    mode = os.environ.get("RAY_AUTH_MODE", "unset")
    return (
        f"--address {address}: a process listens there, but it takes no connection from this one (RAY_AUTH_MODE is "
        f"{mode}); if the cluster asks for a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to its token file"
    )
