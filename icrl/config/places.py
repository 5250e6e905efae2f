"""Where things may lie: directories, and for datasets and runs `s3://bucket/prefix`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from icrl.config.sections import Problem

OBJECT_SCHEME = "s3://"

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_SEGMENT = re.compile(r"(?!\.\.?$)[A-Za-z0-9._=+@-]+")
"""What every store, every tool and a shell take as it is."""


def split_url(url: str) -> tuple[str, str]:
    """The bucket and the prefix of s3://bucket/prefix; a slash at its end means nothing.

    Raises:
        ValueError: what the URL should look like.
    """
    bucket, _, prefix = url.removeprefix(OBJECT_SCHEME).partition("/")
    prefix = prefix.removesuffix("/")
    if not url.startswith(OBJECT_SCHEME):
        raise ValueError("a directory, or s3://bucket/prefix")
    if not _BUCKET.fullmatch(bucket):
        raise ValueError("s3://bucket/prefix with a bucket of 3 to 63 lower-case letters, digits, '.' and '-'")
    if not all(_SEGMENT.fullmatch(segment) for segment in prefix.split("/")):
        raise ValueError(
            "s3://bucket/prefix with a prefix of letters, digits and . _ = + @ -, its parts separated by one slash"
        )
    return bucket, prefix


def directory_problems(name: str, value: str | None) -> Iterator[Problem]:
    """Why a path cannot be a directory of ours."""
    if value is not None and "://" in value:
        remedy = "what may lie in an object store: dataset.path=s3://bucket/prefix and run.dir=s3://bucket/prefix"
        yield Problem(name, value, "a directory on a local or mounted disk", remedy)


def place_problems(name: str, value: str | None) -> Iterator[Problem]:
    """Why a path cannot hold a dataset or a run of ours."""
    if value is None or "://" not in value:
        return
    remedy = ""
    if not value.startswith(OBJECT_SCHEME):
        remedy = f"{value.partition('://')[0]}:// is not supported"
    elif "@" in value.split("/")[2]:
        remedy = "credentials are read from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
    try:
        split_url(value)
    except ValueError as error:
        yield Problem(name, value, str(error), remedy)
