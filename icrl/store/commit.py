"""The layout of a dataset on disk, and what makes a shard data.

    recipe.json                    what the dataset is
    README.md                      the same for people (`icrl.store.card`)
    <split>.zarr/                  a Zarr v3 group; <array>/c.<shard>[.0...] are its shards
    _commits/<split>/<shard>.json  rows, and of each array's file the size and the crc32c of each inner chunk

(A crc32c over the whole file would not do: that of any chunk followed by its own crc32c is the same number, so it would
hold for every file of undamaged chunks, whatever they hold.)

A shard's files are written aside, fsynced and renamed; then, last and in the same way, its commit record. A shard
without a record is not data, whatever lies on disk. Generation is deterministic, so writing a shard twice is harmless.
In an object store the same keys hold the same bytes, each by one PUT, and the record again comes last.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from icrl.config import Config
from icrl.files import PARTIAL
from icrl.store.card import CARD_FILE, dataset_card
from icrl.store.place import Place, claim_json, make_directory, read_json, sizes, write, write_all, write_json
from icrl.store.recipe import SPLITS, Recipe, dataset_recipe, recipe_sha256, require_same_recipe
from icrl.store.schema import ArraySpec, Geometry, array_metadata, arrays_for, geometry_for
from icrl.store.shard import chunk_sums, encode_shard
from icrl.versions import KERNEL_VERSION, RNG_VERSION, SCHEMA_VERSION

RECIPE_FILE = "recipe.json"


def split_directory(dataset: Place, split: str) -> Place:
    """The Zarr group of a split."""
    return dataset / f"{split}.zarr"


def shard_file(dataset: Place, split: str, spec: ArraySpec, shard: int) -> Place:
    """The file of one array's shard."""
    return split_directory(dataset, split) / spec.name / spec.key(shard)


def record_file(dataset: Place, split: str, shard: int) -> Place:
    """The commit record of a shard."""
    return dataset / "_commits" / split / f"{shard}.json"


def read_recipe(dataset: Place) -> Recipe | None:
    """The recipe of a dataset, or None where there is no dataset.

    Raises:
        ValueError: if the recipe is damaged, or of a schema that this version does not read.
    """
    path = dataset / RECIPE_FILE
    if not path.exists():
        return None
    remedy = f"write it again with `python -m data_gen repair {dataset}`, or set dataset.path to a new place"
    try:
        recipe: Recipe = read_json(path)
    except ValueError as error:
        raise ValueError(f"{error}; {remedy}") from None
    if not isinstance(recipe, dict):
        raise ValueError(f"{path} is not a recipe: {remedy}")
    version = recipe.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"{dataset} has schema_version {version}, this version reads {SCHEMA_VERSION}: generate it again elsewhere"
        )
    return recipe


def require_dataset_place(dataset: Place) -> None:
    """Refuse a place that is neither a dataset nor free for one.

    Raises:
        ValueError: a file, or a directory that holds something else; nothing there was touched.
    """
    if not dataset.exists() or (dataset / RECIPE_FILE).exists():
        return
    if not dataset.is_dir():
        raise ValueError(f"dataset.path = {dataset}: expected a directory, got a file; set dataset.path to a new place")
    own = re.compile(rf"\.lock|\.{re.escape(RECIPE_FILE)}\..*\{PARTIAL}")
    if foreign := sorted(path.name for path in dataset.iterdir() if not own.fullmatch(path.name)):
        raise ValueError(
            f"{dataset} is no dataset, yet holds {', '.join(foreign[:3])}: set dataset.path to a new place"
        )


def initialise(dataset: Place, config: Config, provenance: Mapping[str, Any]) -> None:
    """Make the dataset's directories and metadata, or find them as they should be; the caller holds the lock.

    `provenance` (library versions, commit) is written beside the recipe when a split is first made; it never blocks.

    Raises:
        ValueError: if the directory holds another recipe, or something else than a dataset.
    """
    recipe = dataset_recipe(config)
    stored = read_recipe(dataset)
    if stored is not None:
        require_same_recipe(dataset, stored, recipe)
    else:
        require_dataset_place(dataset)
        claim_json(dataset / RECIPE_FILE, recipe)
        # without a lock another writer may have come first, with another recipe
        require_same_recipe(dataset, read_recipe(dataset) or {}, recipe)
    specs = arrays_for(config)
    if not (dataset / CARD_FILE).exists():
        write(dataset / CARD_FILE, dataset_card(recipe, specs).encode())
    for split in SPLITS:
        _initialise_split(dataset, split, specs, geometry_for(specs, recipe["sizes"][split]), recipe, provenance)


def initialised(dataset: Place, specs: tuple[ArraySpec, ...]) -> bool:
    """Whether the recipe and all Zarr metadata are there."""
    groups = [split_directory(dataset, split) for split in SPLITS]
    files = [group / "zarr.json" for group in groups] + [
        group / s.name / "zarr.json" for group in groups for s in specs
    ]
    return all(path.exists() for path in (dataset / RECIPE_FILE, *files))


def _initialise_split(
    dataset: Place,
    split: str,
    specs: tuple[ArraySpec, ...],
    geometry: Geometry,
    recipe: Recipe,
    provenance: Mapping[str, Any],
) -> None:
    group = split_directory(dataset, split)
    make_directory(record_file(dataset, split, 0).parent)
    for spec in specs:
        make_directory(group / spec.name)
        if not (group / spec.name / "zarr.json").exists():
            claim_json(group / spec.name / "zarr.json", array_metadata(spec, geometry))
    if not (group / "zarr.json").exists():
        claim_json(group / "zarr.json", group_metadata(split, geometry, recipe, provenance))


def group_metadata(split: str, geometry: Geometry, recipe: Recipe, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """`zarr.json` of a split."""
    attributes = {
        "split": split,
        "n_trajectories": geometry.n,
        "recipe": recipe,
        "recipe_sha256": recipe_sha256(recipe),
        "schema_version": SCHEMA_VERSION,
        "rng_version": RNG_VERSION,
        "kernel_version": KERNEL_VERSION,
        "provenance": dict(provenance),
    }
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def write_shard(
    dataset: Place,
    split: str,
    shard: int,
    arrays: Mapping[str, npt.NDArray[Any]],
    specs: tuple[ArraySpec, ...],
    geometry: Geometry,
) -> int:
    """Write and commit one shard: `arrays` holds its rows, [stop - start, *row_shape] each. Returns bytes written."""
    start, stop = geometry.shard_range(shard)
    sums: dict[str, dict[str, Any]] = {}
    files: dict[Place, list[bytes | npt.NDArray[Any]]] = {}
    for spec in specs:
        rows = arrays[spec.name]
        assert len(rows) == stop - start, (spec.name, len(rows), stop - start)
        buffers = encode_shard(rows, spec, geometry)
        files[shard_file(dataset, split, spec, shard)] = buffers
        sums[spec.name] = {"bytes": geometry.shard_bytes(spec, shard), "crc32c": chunk_sums(buffers)}
    write_all(files)
    write_json(record_file(dataset, split, shard), {"shard": shard, "rows": stop - start, "arrays": sums})
    return sum(entry["bytes"] for entry in sums.values())


def read_record(dataset: Place, split: str, shard: int) -> dict[str, Any] | None:
    """The commit record of a shard, or None where there is none.

    Raises:
        ValueError: if the record is damaged.
    """
    path = record_file(dataset, split, shard)
    if not path.exists():
        return None
    record: dict[str, Any] = read_json(path)
    return record


def missing(dataset: Place, split: str, specs: tuple[ArraySpec, ...], geometry: Geometry) -> list[int]:
    """Shards of a split that are not data: no record, or a file that is gone or has another size."""
    # one listing of each folder: asking for each file by name takes seconds for a million shards
    records = sizes(record_file(dataset, split, 0).parent)
    files = {spec: sizes(shard_file(dataset, split, spec, 0).parent) for spec in specs} if records else {}
    return [
        shard
        for shard in range(geometry.n_shards)
        if not records
        or f"{shard}.json" not in records
        or any(files[spec].get(spec.key(shard)) != geometry.shard_bytes(spec, shard) for spec in specs)
    ]


def withdraw(dataset: Place, split: str, shard: int) -> None:
    """Take back a shard's commit record, so that the next generation writes the shard again."""
    record_file(dataset, split, shard).unlink(missing_ok=True)
