"""Objects of an S3 store, addressed like paths: the part of pathlib that a dataset needs.

A PUT replaces an object whole or not at all, so nothing is written aside and renamed. Endpoint, region and credentials
are those of the environment (AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID, ...); a path holds none of them, and can
be sent to another process.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from icrl.config import OBJECT_SCHEME, split_url
from icrl.store.s3 import again, client, errors

if TYPE_CHECKING:
    from obstore.store import S3Store


LARGEST_PUT = 5 * 2**30
"""Bytes that S3 takes in one request."""


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

        with errors(self):
            return obstore.get(self._client, self.key).bytes().to_bytes()

    def read_ranges(self, starts: Sequence[int], lengths: Sequence[int]) -> list[memoryview]:
        """Several ranges of the object; those that lie close together travel as one request.

        Raises:
            FileNotFoundError: there is no such object.
            ValueError: the object ends before a range does.
            OSError: the store does not answer, or refuses.
        """
        import obstore

        with errors(self):
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

        with errors(self):
            try:
                # in one request: a killed multipart upload stays in the bucket, unseen and paid for
                obstore.put(
                    self._client, self.key, data, mode="overwrite" if replace else "create", use_multipart=False
                )
            except AlreadyExistsError:
                return False
        return True

    def read_tagged(self) -> tuple[bytes, str]:
        """The whole object and its tag, which changes with its bytes.

        Raises:
            FileNotFoundError: there is none.
            OSError: the store does not answer, or refuses.
        """
        import obstore

        with errors(self):
            found = obstore.get(self._client, self.key)
            return found.bytes().to_bytes(), found.meta["e_tag"] or ""

    def write_tagged(self, data: bytes, tag: str | None) -> str | None:
        """PUT the object where its tag still is `tag`, with None where there is no object; the new tag, or None.

        A request that is repeated because its answer was lost finds its own bytes: None may then mean that they are
        there, and the caller reads them.

        Raises:
            OSError: the store does not answer, or refuses.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError, NotFoundError, PreconditionError

        with errors(self):
            try:
                mode: Any = "create" if tag is None else {"e_tag": tag}
                return obstore.put(self._client, self.key, data, mode=mode, use_multipart=False)["e_tag"]
            except (AlreadyExistsError, NotFoundError, PreconditionError, FileNotFoundError):
                return None

    def unlink(self, *, missing_ok: bool = False) -> None:
        """Delete the object; S3 does not say whether there was one, and `missing_ok` False is not offered."""
        import obstore

        assert missing_ok, "S3 deletes what is not there"
        with errors(self):
            again(lambda: obstore.delete(self._client, self.key))

    def size(self) -> int:
        """Bytes of the object.

        Raises:
            FileNotFoundError: there is none.
        """
        import obstore

        with errors(self):
            return obstore.head(self._client, self.key)["size"]

    def exists(self) -> bool:
        """Whether there is such an object, or any below it."""
        with contextlib.suppress(FileNotFoundError):
            self.size()
            return True
        return self.is_dir()

    def is_dir(self) -> bool:
        """Whether any object lies below; the marker of an empty folder is none."""
        import obstore

        def found() -> bool:
            batches = obstore.list(self._client, f"{self.key}/", chunk_size=2)
            return any(entry["path"] != self.key for batch in batches for entry in batch)

        with errors(self):
            return again(found)

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

    def walk(self) -> dict[str, int]:
        """Key relative to this prefix -> bytes, of all objects below it; without the markers of folders."""
        import obstore

        def listed() -> dict[str, int]:
            batches = obstore.list(self._client, f"{self.key}/")
            return {entry["path"]: entry["size"] for batch in batches for entry in batch}

        with errors(self):
            found = again(listed)
        return {
            key.removeprefix(f"{self.key}/"): size for key, size in found.items() if size or not self._is_marker(key)
        }

    def _listed(self) -> Any:
        import obstore

        with errors(self):
            found = again(lambda: obstore.list_with_delimiter(self._client, f"{self.key}/"))
        return found | {"objects": [entry for entry in found["objects"] if entry["path"] != self.key]}

    def _is_marker(self, key: str) -> bool:
        """Whether an empty object of a listing is the folder `key/`, which consoles make; listings drop the slash."""
        if key == self.key:
            return True
        try:
            ObjectPath(self.bucket, key).size()
        except FileNotFoundError:
            return True
        return False

    @property
    def _client(self) -> S3Store:
        return client(self.bucket, tuple(sorted((k, v) for k, v in os.environ.items() if k.startswith("AWS_"))))


def joined(data: bytes | Iterable[Any]) -> bytes:
    """One contiguous buffer of several (bytes or arrays)."""
    buffers: Iterable[Any] = [data] if isinstance(data, bytes) else data
    return b"".join(buffers)
