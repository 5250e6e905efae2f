"""Jobs of a Ray cluster, through its dashboard's HTTP address: reach it, submit, follow, stop, and the real outcome."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import logging
import os
import re
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from data_gen.connected_ray import TOKEN, token_headers
from icrl.cli import FAILED, TERMINATED

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
ENDED = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})
GRACE = "RAY_JOB_STOP_WAIT_TIME_S"
"""Ray kills a stopped job after so many seconds; its default of 3 is too short for a checkpoint."""

_PATIENCE_S = 5.0
_REQUEST_TIMEOUT = (5.0, 120.0)
"""Seconds to connect and to answer, for requests that carry a package."""
_POLL_S = 0.5


def usual_address(given: str | None) -> str:
    """The URL meant: as given, or as Ray's own commands would choose it."""
    environment = (os.environ.get(name, "") for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"))
    address = given or next((value for value in environment if value.startswith("http")), DEFAULT_ADDRESS)
    return (address if "://" in address else f"http://{address}").rstrip("/")


def is_loopback(url: str) -> bool:
    """Whether a URL is of this machine (or of a tunnel that begins here)."""
    host = urlsplit(url).hostname or ""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def require_address(url: str, *, plain_http: bool) -> None:
    """Refuse an address before anything, the token above all, is sent to it.

    Raises:
        ValueError: not http(s), or unencrypted to another machine without `plain_http`.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"--address {url}: expected the http(s) address of a Ray dashboard, as {DEFAULT_ADDRESS}")
    if parts.scheme == "http" and not is_loopback(url) and not plain_http:
        port = parts.port or 8265
        raise ValueError(
            f"--address {url}: the token and the code would travel unencrypted; open a tunnel "
            f"(ssh -N -L {port}:127.0.0.1:{port} {parts.hostname}) and take --address http://127.0.0.1:{port}, "
            "use https, or allow it with --allow-plain-http"
        )


@dataclass(frozen=True)
class Jobs:
    """The jobs of one cluster."""

    url: str
    client: Any
    """Ray's JobSubmissionClient."""
    hosts: frozenset[str]
    """Names of the machines that are nodes of the cluster."""

    @staticmethod
    def at(url: str, *, plain_http: bool = False) -> Jobs:
        """Reach the cluster, within seconds.

        Raises:
            ValueError: no cluster answers, or it does not take the token; with the remedy.
        """
        require_address(url, plain_http=plain_http)
        _go_round_proxies(url)
        headers = token_headers()
        from ray.job_submission import JobSubmissionClient

        for name in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging"):
            logging.getLogger(f"ray.{name}").setLevel(logging.WARNING)
        if not isinstance(_get(url, "/api/version", headers), dict):
            raise ValueError(f"--address {url}: what answers there is not a Ray dashboard")
        hosts = _get(url, "/nodes?view=hostNameList", headers)["data"]["hostNameList"]
        client: Any = JobSubmissionClient(url)
        client._do_request = partial(client._do_request, timeout=_REQUEST_TIMEOUT)
        return Jobs(url, client, frozenset(hosts))

    @property
    def local(self) -> bool:
        """Whether every node is this machine: only then do its paths mean the same there."""
        return is_loopback(self.url) and self.hosts <= {socket.gethostname()}

    def all(self) -> list[Any]:
        """Ray's JobDetails of what was submitted, oldest first."""
        found = [job for job in self.client.list_jobs() if job.submission_id]
        return sorted(found, key=lambda job: job.start_time or 0)

    def attempts(self, prefix: str) -> list[Any]:
        """The jobs called `<prefix>-<number>`, by number."""
        pattern = re.compile(re.escape(prefix) + r"-(\d+)")
        found = [(int(match[1]), job) for job in self.all() if (match := pattern.fullmatch(job.submission_id))]
        return [job for _, job in sorted(found, key=lambda entry: entry[0])]

    def find(self, name: str) -> Any:
        """The job of that submission id, or the latest attempt of that name.

        Raises:
            ValueError: there is none.
        """
        jobs = self.all()
        exact = [job for job in jobs if job.submission_id == name]
        if found := exact or self.attempts(name):
            return found[-1]
        names = ", ".join(job.submission_id for job in jobs[-8:]) or "none"
        raise ValueError(f"JOB = {name}: {self.url} has no such job; the latest are: {names}")

    def info(self, job: str) -> Any:
        return self.client.get_job_info(job)

    def follow(self, job: str, write: Callable[[str], None]) -> None:
        """Hand on the log from its beginning until the job has ended, across broken connections."""
        import aiohttp

        written = 0

        async def tail() -> None:
            nonlocal written
            passed = 0
            async for text in self.client.tail_job_logs(job):
                passed += len(text)
                if passed > written:
                    write(text[-(passed - written) :])
                    written = passed

        while True:
            with contextlib.suppress(RuntimeError, OSError, aiohttp.ClientError):
                asyncio.run(tail())
            if str(self.info(job).status) in ENDED:
                break
            time.sleep(_POLL_S)
        rest = self.client.get_job_logs(job)[written:]
        if rest:
            write(rest)

    def outcome(self, job: str) -> int:
        """The exit code of a job that has ended: its own, 143 when it was stopped."""
        info = self.info(job)
        match str(info.status):
            case "SUCCEEDED":
                return 0
            case "STOPPED":
                return TERMINATED
        code = info.driver_exit_code
        if code is None:
            return FAILED
        return int(code) if code >= 0 else 128 - int(code)

    def stop(self, job: str, patience: float) -> str:
        """Ask a job to end and wait for it; the status it is in then, which need not be an end."""
        self.client.stop_job(job)
        deadline = time.monotonic() + patience
        status = str(self.info(job).status)
        while status not in ENDED and time.monotonic() < deadline:
            time.sleep(_POLL_S)
            status = str(self.info(job).status)
        return status


@contextlib.contextmanager
def losing_the_head(url: str) -> Iterator[None]:
    """A head that goes away in the middle is one clear message."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{url} no longer answers as a Ray dashboard: {_first(error)}") from error


def _go_round_proxies(url: str) -> None:
    """Keep requests to this machine, with the token in them, from a proxy of the environment, which cannot reach it."""
    host = urlsplit(url).hostname or ""
    given = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    if is_loopback(url) and given != "*" and host not in given.split(","):
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(filter(None, [given, host]))


def _get(url: str, path: str, headers: dict[str, str]) -> Any:
    request = urllib.request.Request(url + path, headers=headers)
    opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if is_loopback(url) else []))
    try:
        with opener.open(request, timeout=_PATIENCE_S) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code == 401:
            raise ValueError(f"--address {url}: the cluster asks for a token and got none; {TOKEN}") from None
        if error.code == 403:
            raise ValueError(f"--address {url}: the cluster does not take this token; {TOKEN}") from None
        raise ValueError(f"--address {url}: what answers there is not a Ray dashboard (HTTP {error.code})") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise ValueError(
            f"--address {url}: no Ray cluster answers there ({_first(reason)}); start one with ray start --head, "
            "open the tunnel, or name another with --address"
        ) from None


def _first(error: object) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
