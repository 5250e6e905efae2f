"""The client of an S3 store: settings of the environment, attempts, and its errors in one line each."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from obstore.store import BackoffConfig, S3Store

    from icrl.store.objects import ObjectPath

Answer = TypeVar("Answer")

_ATTEMPTS = 8
"""Of each request, unless AWS_MAX_ATTEMPTS says otherwise; about a minute where nobody answers."""
_BACKOFF: BackoffConfig = {"init_backoff": timedelta(seconds=0.3), "max_backoff": timedelta(seconds=15), "base": 4}
_ENDPOINT = re.compile(
    r"https?://[A-Za-z0-9.-]+(:\d{1,5})?(/[^\s@]*)?|https?://\[[0-9a-fA-F:]+\](:\d{1,5})?(/[^\s@]*)?"
)
_RETRY_TIMEOUT = timedelta(minutes=3)
_STALLED = timedelta(minutes=2)
"""Nothing heard for so long ends an attempt."""
_REQUEST_TIMEOUT = timedelta(minutes=10)


class ObjectStoreError(OSError):
    """The store does not answer, or denies access: nothing is known of what lies in it."""


@lru_cache(maxsize=8)
def client(bucket: str, environment: tuple[tuple[str, str], ...]) -> S3Store:
    """The client of a bucket, one for each environment that it was made from."""
    from obstore.exceptions import BaseError
    from obstore.store import S3Store

    values = dict(environment)
    attempts = _attempts()
    allow_http = values.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true", "yes")
    given = _given_endpoint()
    if given and not _ENDPOINT.fullmatch(given):
        raise ValueError(
            f"AWS_ENDPOINT_URL = {_endpoint()}: expected https://host[:port], without a user and a password"
        )
    if _endpoint().startswith("http://") and not allow_http:
        raise ValueError(
            f"AWS_ENDPOINT_URL = {_endpoint()}: plain HTTP lets others on the network read and change the data; "
            "set AWS_ALLOW_HTTP=true where that is fine, or use https"
        )
    try:
        return S3Store(
            bucket,
            client_options={"allow_http": allow_http, "timeout": _REQUEST_TIMEOUT, "read_timeout": _STALLED},
            retry_config={"max_retries": attempts - 1, "retry_timeout": _RETRY_TIMEOUT, "backoff": _BACKOFF},
        )
    except BaseError as error:
        raise ValueError(
            f"s3://{bucket}: {_plain(str(error).partition(chr(10))[0])}: check the AWS_* variables"
        ) from None


@contextlib.contextmanager
def errors(path: ObjectPath) -> Iterator[None]:
    """What the client raises, in one line that says what to do, without anything secret."""
    from obstore.exceptions import BaseError, InvalidPathError, PermissionDeniedError, UnauthenticatedError

    try:
        yield
    except (BaseError, OSError) as error:
        text = str(error)
        code = re.search(r"<Code>(\w+)</Code>", text)
        if code and code[1] == "NoSuchBucket":
            raise ValueError(
                f"{path}: {_endpoint()} has no bucket {path.bucket}: make it, or correct the URL"
            ) from None
        if "/latest/api/token" in text or "/latest/meta-data" in text:
            raise ObjectStoreError(
                f"{path}: no keys in the environment, and this machine has no role that gives some: set "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            ) from None
        if isinstance(error, FileNotFoundError):
            raise FileNotFoundError(f"{path} is not there") from None
        if isinstance(error, InvalidPathError):  # of some object of a listing
            raise ObjectStoreError(
                f"{path}: {_plain(text.partition(chr(10))[0])}: remove that object, or choose another place"
            ) from None
        if isinstance(error, PermissionError | PermissionDeniedError | UnauthenticatedError):
            raise ObjectStoreError(
                f"{path}: {_endpoint()} denies access{f' ({code[1]})' if code else ''}: check "
                "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy"
            ) from None
        reason = code[1] if code else _reason(text)
        raise ObjectStoreError(
            f"{path}: {_endpoint()} does not answer as it should ({reason}): check AWS_ENDPOINT_URL, AWS_REGION and "
            "the network, then run the same command again; it resumes"
        ) from None


def again(call: Callable[[], Answer]) -> Answer:
    """Call again when the connection breaks inside the answer to a listing or a deletion.

    The client itself begins anew in all other cases, and where GET broke off it goes on.
    """
    from obstore.exceptions import GenericError

    for attempt in range(_attempts() - 1):
        try:
            return call()
        except GenericError as error:
            if "response body" not in str(error):
                raise
            time.sleep(min(0.3 * 2**attempt, 15.0))
    return call()


def _attempts() -> int:
    """Of each request.

    Raises:
        ValueError: AWS_MAX_ATTEMPTS is not a number of them.
    """
    given = os.environ.get("AWS_MAX_ATTEMPTS", str(_ATTEMPTS))
    if not given.isdecimal() or given == "0":
        raise ValueError(f"AWS_MAX_ATTEMPTS = {given!r}: expected a number of attempts, 1 or more")
    return int(given)


def _reason(text: str) -> str:
    """The end of the first line of an error; the server's answer is left out: it may repeat the request's signature."""
    if status := re.search(r"status code: (\d+)", text):
        return f"status {status[1]}"
    first = text.partition("\n")[0].rpartition(" - ")[2].removeprefix("Generic S3 error: ")
    retries = re.search(r"after (\d+) retries", text)
    return _plain(first) + (f", after {retries[1]} retries" if retries else "")


def _endpoint() -> str:
    """The server as messages may show it."""
    return _plain(_given_endpoint() or "Amazon S3")


def _given_endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def _plain(text: str) -> str:
    """A text without the user and password of a URL in it."""
    return re.sub(r"://[^/\s]*@", "://", text)
