"""The metadata of a dataset as it should be, decided by what is still sound of it.

The recipe lies in `recipe.json` and, each time with its sha256, in the attributes of the splits; it decides all other
metadata but the provenance. So whatever of it is damaged is found, and written again as it was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from icrl.config import Config, difference
from icrl.store.commit import RECIPE_FILE, group_metadata, split_directory
from icrl.store.place import Place, make_directory, read_json, write_json
from icrl.store.recipe import SPLITS, Recipe, recipe_config, recipe_sha256
from icrl.store.s3 import ObjectStoreError
from icrl.store.schema import array_metadata, arrays_for, geometry_for

LOST: Mapping[str, Any] = {"lost": "the metadata of every split was damaged and written again"}
"""Provenance of a dataset of which no split has kept its own."""


@dataclass(frozen=True)
class Fault:
    """One thing wrong: the file, what is wrong with it, and the shard to write again (None: the file alone)."""

    path: Place
    problem: str
    split: str | None
    shard: int | None

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}"


def recover_recipe(dataset: Place) -> tuple[Recipe, Config]:
    """The recipe of a dataset and the config that generates it, also where `recipe.json` is damaged.

    A copy counts that agrees with the sha256 beside it. `recipe.json`, which has none, decides where there is no copy.

    Raises:
        ValueError: if there is no dataset, it is of another version (with the difference), or nothing sound is left.
    """
    path = dataset / RECIPE_FILE
    own = _mapping(path)
    copies = [recipe for split in SPLITS if (recipe := _copy(dataset, split)) is not None]
    votes = Counter(recipe_sha256(copy) for copy in copies)
    most = [copy for copy in copies if votes[recipe_sha256(copy)] == max(votes.values())]
    if not copies and own is not None:
        recipe = own
    elif not copies:
        if not path.exists() and not any(split_directory(dataset, split).exists() for split in SPLITS):
            raise ValueError(f"{dataset} holds no dataset: there is no {RECIPE_FILE}")
        raise ValueError(f"{path} is damaged, and no split holds a sound copy: generate the dataset again elsewhere")
    elif own in most or all(copy == most[0] for copy in most):
        recipe = own if own in most else most[0]
    else:
        raise ValueError(f"{dataset}: its splits hold different recipes, and {RECIPE_FILE} is none of them")
    return recipe, recipe_config(dataset, recipe)


def metadata_faults(dataset: Place, recipe: Recipe, config: Config) -> list[Fault]:
    """Metadata that is gone, cannot be read, or is not what the recipe decides; the card is nobody's metadata."""
    faults = []
    for path, split, expected in _expected(dataset, recipe, config):
        if problem := _problem(path, expected):
            faults.append(Fault(path, problem, split, None))
    return faults


def mend_metadata(dataset: Place, recipe: Recipe, config: Config, faults: Sequence[Fault]) -> list[Place]:
    """Write again the metadata that `metadata_faults` found wrong, and nothing else; the caller holds the lock."""
    wrong = {fault.path for fault in faults if fault.shard is None}
    mended = []
    for path, _, expected in _expected(dataset, recipe, config):
        if path in wrong:
            make_directory(path.parent)
            write_json(path, expected)
            mended.append(path)
    return mended


def _expected(dataset: Place, recipe: Recipe, config: Config) -> Iterator[tuple[Place, str | None, Any]]:
    """Each file of metadata with its split and its value; provenance is whatever is there."""
    specs = arrays_for(config)
    yield dataset / RECIPE_FILE, None, recipe
    kept = {split: read_provenance(dataset, split) for split in SPLITS}
    others = next((found for found in kept.values() if found is not None), LOST)
    for split in SPLITS:
        group, geometry = split_directory(dataset, split), geometry_for(specs, recipe["sizes"][split])
        provenance = kept[split]
        yield (
            group / "zarr.json",
            split,
            group_metadata(split, geometry, recipe, others if provenance is None else provenance),
        )
        for spec in specs:
            yield group / spec.name / "zarr.json", split, array_metadata(spec, geometry)


def _problem(path: Place, expected: Any) -> str | None:
    if not path.exists():
        return "file is gone"
    found = _mapping(path)
    if found is None:
        return "is not valid JSON"
    lines = difference(found, expected)
    return f"is not what the recipe decides (found -> expected): {'; '.join(lines[:3])}" if lines else None


def _mapping(path: Place) -> dict[str, Any] | None:
    try:
        value = read_json(path)
    except ObjectStoreError:
        raise
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _attributes(dataset: Place, split: str) -> Mapping[str, Any]:
    attributes = (_mapping(split_directory(dataset, split) / "zarr.json") or {}).get("attributes")
    return attributes if isinstance(attributes, dict) else {}


def _copy(dataset: Place, split: str) -> Recipe | None:
    attributes = _attributes(dataset, split)
    recipe = attributes.get("recipe")
    sound = isinstance(recipe, dict) and attributes.get("recipe_sha256") == recipe_sha256(recipe)
    return recipe if sound else None


def read_provenance(dataset: Place, split: str) -> Mapping[str, Any] | None:
    """Library versions, commit and machine of the command that made a split, or None where that is lost."""
    provenance = _attributes(dataset, split).get("provenance")
    return provenance if isinstance(provenance, dict) else None
