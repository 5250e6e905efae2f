"""What decides the bytes of a dataset, and where the dataset lies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from icrl.config import Config, ConfigError, build, difference, to_dict
from icrl.files import canonical_json, sha256_bytes
from icrl.store.place import Place, place
from icrl.versions import KERNEL_VERSION, RNG_VERSION, SCHEMA_VERSION

SPLITS = ("train", "validation", "test")
"""Splits that are stored; each is its own stream of random numbers."""

Recipe = dict[str, Any]
"""Plain values, as in `recipe.json`."""


def dataset_recipe(config: Config) -> Recipe:
    """Everything that changes bytes, and nothing else.

    Labels are views of stored arrays, so the expert is not in it: runs that differ in the label share a dataset.
    """
    return {
        "environment": to_dict(config.environment),
        "context": [to_dict(component) for component in config.context],
        "seed": config.dataset.seed,
        "sizes": {split: getattr(config.dataset, split) for split in SPLITS},
        "materialise": sorted(set(config.dataset.materialise)),
        "rng_version": RNG_VERSION,
        "kernel_version": KERNEL_VERSION,
        "schema_version": SCHEMA_VERSION,
    }


def recipe_config(dataset: Place, recipe: Recipe) -> Config:
    """A config that generates this dataset again, from its recipe alone; everything else has its default.

    Raises:
        ValueError: if this version would make other bytes of it, or cannot read it; shows the difference.
    """
    versions = {"rng_version": RNG_VERSION, "kernel_version": KERNEL_VERSION, "schema_version": SCHEMA_VERSION}
    if lines := difference({name: recipe.get(name) for name in versions}, versions):
        raise ValueError(_other_version(dataset, lines))
    sizes = recipe.get("sizes")
    here = dataset.absolute() if isinstance(dataset, Path) else dataset
    values = {
        "storage": {"root": str(here.parent) if isinstance(here, Path) else "."},
        "environment": recipe.get("environment"),
        "context": recipe.get("context"),
        "dataset": {
            "path": here.name if isinstance(here, Path) else str(here),
            "seed": recipe.get("seed"),
            "materialise": recipe.get("materialise"),
        }
        | (sizes if isinstance(sizes, dict) else {}),
        "train": {"global_batch": 1, "workers": 1},
    }
    try:
        config = build(Config, values)
    except ConfigError as error:
        raise ValueError(f"{dataset}: its recipe is not one that this version knows:\n  {error}") from None
    if lines := difference(recipe, dataset_recipe(config)):
        raise ValueError(_other_version(dataset, lines))
    return config


def _other_version(dataset: Place, lines: list[str]) -> str:
    return (
        f"{dataset} was made by another version of the generator (dataset -> this version):\n  "
        + "\n  ".join(lines)
        + "\nits values cannot be made again here: use the version that made it, whose commit `inspect` prints, "
        "or generate the dataset again elsewhere"
    )


def recipe_sha256(recipe: Recipe) -> str:
    """The sha256 of the recipe's canonical JSON."""
    return sha256_bytes(canonical_json(recipe))


def recipe_hash(recipe: Recipe) -> str:
    """The first 8 hex digits of `recipe_sha256`, for directory names."""
    return recipe_sha256(recipe)[:8]


def dataset_path(config: Config) -> Place:
    """Where the dataset of a config lies: `dataset.path`, or data/<name>-<8 hex of the recipe>.

    A directory lies under `storage.root`, s3://bucket/prefix where it says.
    """
    name = config.dataset.path or f"data/{config.name}-{recipe_hash(dataset_recipe(config))}"
    return place(name, config.storage.root)


def require_same_recipe(dataset: Place, stored: Recipe, asked: Recipe) -> None:
    """Refuse a dataset of another recipe.

    Raises:
        ValueError: shows each key that differs, as `dataset -> config`.
    """
    if lines := difference(stored, asked):
        raise ValueError(
            f"{dataset} holds another recipe (dataset -> config):\n  "
            + "\n  ".join(lines)
            + "\nset dataset.path to another directory (null picks one for each recipe), or change the config back"
        )
