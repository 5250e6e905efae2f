"""Objects of an S3 store, addressed like paths: the part of pathlib that a dataset needs.

A PUT replaces an object whole or not at all, so nothing is written aside and renamed. Endpoint, region and credentials
are those of the environment (AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID, ...); a path holds none of them, and can
be sent to another process.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

from icrl.config import OBJECT_SCHEME, split_url

if TYPE_CHECKING:
    from obstore.store import BackoffConfig, S3Store

Answer = TypeVar("Answer")

_ATTEMPTS = 8
"""Of each request, unless AWS_MAX_ATTEMPTS says otherwise; about 10 s where nobody answers."""
_BACKOFF: BackoffConfig = {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=10), "base": 2}
_RETRY_TIMEOUT = timedelta(minutes=3)
_STALLED = timedelta(minutes=2)
"""Nothing heard for so long ends an attempt."""
_REQUEST_TIMEOUT = timedelta(minutes=10)


@dataclass(frozen=True)
class ObjectPath:
    """An object, or all objects below a prefix, as a file and a directory are both a path."""

    bucket: str
    key: str

    @staticmethod
    def parse(url: str) -> ObjectPath:
        """The place s3://bucket/prefix.

        Raises:
            ValueError: what such a URL should look like.
        """
        return ObjectPath(*split_url(url))

    def __str__(self) -> str:
        return f"{OBJECT_SCHEME}{self.bucket}/{self.key}"

    def __truediv__(self, name: str) -> ObjectPath:
        return ObjectPath(self.bucket, f"{self.key}/{name}")

    @property
    def name(self) -> str:
        return PurePosixPath(self.key).name

    @property
    def parent(self) -> ObjectPath:
        return ObjectPath(self.bucket, str(PurePosixPath(self.key).parent))

    def read_bytes(self) -> bytes:
        """The whole object.

        Raises:
            FileNotFoundError: there is none.
            OSError: the store does not answer, or refuses.
        """
        import obstore

        with self._errors():
            return obstore.get(self._client, self.key).bytes().to_bytes()

    def read_ranges(self, starts: Sequence[int], lengths: Sequence[int]) -> list[memoryview]:
        """Several ranges of the object; those that lie close together travel as one request.

        Raises:
            FileNotFoundError: there is no such object.
            ValueError: the object ends before a range does.
            OSError: the store does not answer, or refuses.
        """
        import obstore

        with self._errors():
            parts = [
                memoryview(part) for part in obstore.get_ranges(self._client, self.key, starts=starts, lengths=lengths)
            ]
        for part, start, length in zip(parts, starts, lengths, strict=True):
            if len(part) != length:
                raise ValueError(f"{self} ends at byte {start + len(part)}, expected at least {start + length}")
        return parts

    def write_bytes(self, data: bytes, *, replace: bool = True) -> bool:
        """PUT the object; False, and nothing written, where there is one and `replace` is False.

        Raises:
            OSError: the store does not answer, or refuses.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError

        with self._errors():
            try:
                # in one request: a killed multipart upload stays in the bucket, unseen and paid for
                obstore.put(
                    self._client, self.key, data, mode="overwrite" if replace else "create", use_multipart=False
                )
            except AlreadyExistsError:
                return False
        return True

    def unlink(self, *, missing_ok: bool = False) -> None:
        """Delete the object; S3 does not say whether there was one, and `missing_ok` False is not offered."""
        import obstore

        assert missing_ok, "S3 deletes what is not there"
        with self._errors():
            _again(lambda: obstore.delete(self._client, self.key))

    def size(self) -> int:
        """Bytes of the object.

        Raises:
            FileNotFoundError: there is none.
        """
        import obstore

        with self._errors():
            return obstore.head(self._client, self.key)["size"]

    def exists(self) -> bool:
        """Whether there is such an object, or any below it."""
        with contextlib.suppress(FileNotFoundError):
            self.size()
            return True
        return self.is_dir()

    def is_dir(self) -> bool:
        """Whether any object lies below."""
        import obstore

        with self._errors():
            return _again(lambda: any(obstore.list(self._client, f"{self.key}/", chunk_size=1)))

    def iterdir(self) -> Iterator[ObjectPath]:
        """What lies directly below, objects and prefixes."""
        found = self._listed()
        names = [*(entry["path"] for entry in found["objects"]), *found["common_prefixes"]]
        return iter([ObjectPath(self.bucket, name.rstrip("/")) for name in sorted(names)])

    def folders(self) -> list[ObjectPath]:
        """The prefixes directly below, sorted."""
        return [ObjectPath(self.bucket, name.rstrip("/")) for name in sorted(self._listed()["common_prefixes"])]

    def sizes(self) -> dict[str, int]:
        """Name -> bytes of the objects directly below."""
        return {PurePosixPath(entry["path"]).name: entry["size"] for entry in self._listed()["objects"]}

    def _listed(self) -> Any:
        import obstore

        with self._errors():
            return _again(lambda: obstore.list_with_delimiter(self._client, f"{self.key}/"))

    @property
    def _client(self) -> S3Store:
        return _client(self.bucket, tuple(sorted((k, v) for k, v in os.environ.items() if k.startswith("AWS_"))))

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """What the client raises, in one line that says what to do, without anything secret."""
        from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

        try:
            yield
        except (BaseError, OSError) as error:
            text = str(error)
            code = re.search(r"<Code>(\w+)</Code>", text)
            if code and code[1] == "NoSuchBucket":
                raise ValueError(
                    f"{self}: {_endpoint()} has no bucket {self.bucket}: make it, or correct dataset.path"
                ) from None
            if isinstance(error, FileNotFoundError):
                raise FileNotFoundError(f"{self} is not there") from None
            if isinstance(error, PermissionError | PermissionDeniedError | UnauthenticatedError):
                raise PermissionError(
                    f"{self}: {_endpoint()} denies access{f' ({code[1]})' if code else ''}: check "
                    "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy"
                ) from None
            # the rest of the first line is the server's answer, which may repeat the request's signature
            first = re.split(r": <| - Server returned", text.partition("\n")[0])[0]
            raise OSError(
                f"{self}: {_endpoint()} does not answer as it should ({code[1] if code else _plain(first)}): check "
                "AWS_ENDPOINT_URL, AWS_REGION and the network, then run the same command again; it resumes"
            ) from None


def _again(call: Callable[[], Answer]) -> Answer:
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
            time.sleep(min(0.1 * 2**attempt, 10.0))
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


def joined(data: bytes | Iterable[Any]) -> bytes:
    """One contiguous buffer of several (bytes or arrays)."""
    buffers: Iterable[Any] = [data] if isinstance(data, bytes) else data
    return b"".join(buffers)


def _endpoint() -> str:
    """The server as messages may show it."""
    given = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "Amazon S3"
    return _plain(given)


def _plain(text: str) -> str:
    """A text without the user and password of a URL in it."""
    return re.sub(r"://[^/\s]*@", "://", text)


@lru_cache(maxsize=8)
def _client(bucket: str, environment: tuple[tuple[str, str], ...]) -> S3Store:
    """The client of a bucket, one for each environment that it was made from."""
    from obstore.exceptions import BaseError
    from obstore.store import S3Store

    values = dict(environment)
    attempts = _attempts()
    allow_http = values.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true", "yes")
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
