"""A Ray that others started: connect to it, and leave it as it was found."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any

from data_gen.local_ray import QUIET, terminating

_PATIENCE_S = 5.0
_CLUSTER_ID = "/ray.rpc.NodeInfoGcsService/GetClusterId"
TOKEN = "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to the file with the cluster's token"
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
        except ConnectionError as error:
            raise ValueError(f"--address {address}: the head answers, but Ray could not connect: {error}") from error
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
    _knock(address)
    return address


def _knock(address: str) -> None:
    """One call that any head answers: `ray.init` would try for 20 s, and say the same of every failure."""
    import grpc  # type: ignore[import-untyped]

    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(_CLUSTER_ID, request_serializer=bytes, response_deserializer=bytes)
        try:
            call(b"", timeout=_PATIENCE_S, metadata=list(token_headers().items()))
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                raise ValueError(
                    f"--address {address}: the cluster does not take this token, or got none; {TOKEN}"
                ) from None
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise ValueError(
                    f"--address {address}: no Ray cluster answers there; start one with ray start --head, "
                    "or leave --address out for a Ray of this command's own"
                ) from None
            raise ValueError(f"--address {address}: what answers there is not the head of a Ray cluster") from None


def token_headers() -> dict[str, str]:
    """What goes with a request to a cluster; nothing where RAY_AUTH_MODE asks for no token.

    Raises:
        ValueError: a token is asked for and there is none.
    """
    if not os.environ.get("RAY_AUTH_MODE") and {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        os.environ["RAY_AUTH_MODE"] = "token"
    from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled
    from ray.exceptions import AuthenticationError

    try:
        return dict(get_auth_headers_if_auth_enabled({}))
    except (AuthenticationError, RuntimeError) as error:
        first = str(error).partition(". ")[0]
        raise ValueError(f"RAY_AUTH_MODE is token, but there is none to send: {first}; {TOKEN}") from None
