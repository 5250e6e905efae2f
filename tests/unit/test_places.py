"""Where things may lie: what a URL in a config may be."""

from pathlib import Path

import pytest

from icrl.config import Config, ConfigError, override, split_url
from icrl.store import ObjectPath, dataset_path, dataset_recipe


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("dataset.path=gs://bucket/x", "gs:// is not supported"),
        ("dataset.path=http://host/x", "http:// is not supported"),
        ("dataset.path=s3://bucket", "s3://bucket/prefix"),
        ("dataset.path=s3://bucket/a//b", "separated by one slash"),
        ("dataset.path=s3://bucket/../b", "s3://bucket/prefix with a prefix"),
        ("dataset.path=s3://B/x", "with a bucket of 3 to 63"),
        ("dataset.path=s3://key:hush@bucket/x", "AWS_SECRET_ACCESS_KEY"),
        ("storage.root=s3://bucket/x", "what may lie in an object store: dataset.path=s3://bucket/prefix and run.dir="),
        ("run.dir=gs://bucket/x", "gs:// is not supported"),
        ("run.dir=s3://bucket", "s3://bucket/prefix"),
    ],
)
def test_places_that_cannot_be_are_refused_by_name(entry, expected):
    with pytest.raises(ConfigError) as caught:
        override(Config(), [entry])
    assert expected in str(caught.value)
    assert "hush" not in str(caught.value)


def test_a_url_is_a_bucket_and_a_prefix():
    assert split_url("s3://bucket/a") == ("bucket", "a")
    assert split_url("s3://my.bucket-1/a/b_c.d=e+f@g/") == ("my.bucket-1", "a/b_c.d=e+f@g")
    assert override(Config(), ["dataset.path=s3://bucket/a@b"]).dataset.path == "s3://bucket/a@b"


def test_the_place_is_no_part_of_the_recipe():
    remote, slash, local = (
        override(Config(), [f"dataset.path={path}", "storage.root=/data"])
        for path in ("s3://bucket/a/b", "s3://bucket/a/b/", "b")
    )
    assert dataset_path(remote) == dataset_path(slash) == ObjectPath("bucket", "a/b")
    assert dataset_path(local) == Path("/data/b")
    assert dataset_recipe(remote) == dataset_recipe(local)
