"""The dataset card: `README.md` beside the data, for whoever finds a dataset without its project.

A function of the recipe and of this version's words alone: where and when it was made is provenance, and lies in the
attributes of each split. Nothing reads it; it may be edited.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import yaml

from icrl.config import TrainConfig
from icrl.files import size_text
from icrl.store.recipe import SPLITS, Recipe, recipe_sha256
from icrl.store.schema import ArraySpec, Geometry, geometry_for

CARD_FILE = "README.md"

_LICENCE = "Apache-2.0, as the project that generates it (its LICENSE)."

_KINDS = {
    "linear_bandit": "stochastic linear bandits",
    "bernoulli_bandit": "Bernoulli multi-armed bandits",
    "gaussian_bandit": "Gaussian multi-armed bandits",
    "tabular_mdp": "finite-horizon tabular Markov decision processes",
    "grid_world": "Dark Room grid worlds",
}

_READ = """\
```python
import zarr
reward = zarr.open_group("train.zarr", mode="r")["reward"][:100]

import xarray
reward = xarray.open_zarr("train.zarr", consolidated=False).reward[:100].values

import tensorstore
store = {"driver": "zarr3", "kvstore": {"driver": "file", "path": "train.zarr/reward"}}
reward = tensorstore.open(store).result()[:100].read().result()
```"""


def dataset_card(recipe: Recipe, specs: tuple[ArraySpec, ...]) -> str:
    """The card in Markdown."""
    grids = {split: geometry_for(specs, recipe["sizes"][split]) for split in SPLITS}
    environment = recipe["environment"]
    kind = _KINDS.get(environment["kind"], environment["kind"])
    algorithms = ", ".join(dict.fromkeys(component["algorithm"] for component in recipe["context"]))
    parts = [
        f"# Trajectories of {algorithms} in {kind}",
        f"Interactions of a context algorithm ({algorithms}) with {kind}, each in an environment of its own drawn from "
        "the prior, for pretraining transformers to do reinforcement learning in context "
        "(Lin, Bai and Mei, arXiv 2310.08566). All of it is simulated; no data of persons.",
        "## Splits",
        _table(("split", "trajectories", "shards", "size"), [_split_row(s, grids[s], specs) for s in SPLITS]),
        "Splits differ in the key of their random numbers, so their environments are drawn independently. Trajectories "
        "of a split are i.i.d. in their index.",
        "## Arrays",
        "Each split is a Zarr v3 group, `<split>.zarr`; axis 0 of every array is the trajectory.",
        _table(("array", "dtype", "dimensions", "shape of a row", "units", "what"), [_array_row(s) for s in specs]),
        "## How it was made",
        "Every byte is a function of this config and the versions below. With it in `config.yaml`, the same dataset is "
        "made by `python -m data_gen config.yaml dataset.path=DIRECTORY`:",
        f"```yaml\n{_config_text(recipe)}```",
        f"Versions: random numbers {recipe['rng_version']}, rollouts {recipe['kernel_version']}, layout "
        f"{recipe['schema_version']}. Recipe (`recipe.json`): sha256 {recipe_sha256(recipe)}. Commit and library "
        "versions are the attribute `provenance` of each split.",
        "## Reading it",
        _READ,
        "Only shards with a record in `_commits/` are data; others read as fill values. `python -m data_gen verify "
        "DIRECTORY` checks every sum and makes a sample again bit for bit, `repair` writes again what is damaged, "
        "`inspect` adds statistics to this page.",
        "## Licence",
        _LICENCE,
    ]
    return "\n\n".join(parts) + "\n"


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _split_row(split: str, geometry: Geometry, specs: tuple[ArraySpec, ...]) -> tuple[str, ...]:
    size = sum(geometry.shard_bytes(spec, shard) for spec in specs for shard in range(geometry.n_shards))
    return f"`{split}`", f"{geometry.n:,}", f"{geometry.n_shards:,}", size_text(size)


def _array_row(spec: ArraySpec) -> tuple[str, ...]:
    shape = " x ".join(map(str, spec.row_shape)) or "-"
    name = np.dtype(spec.dtype).name
    return f"`{spec.name}`", name, ", ".join(spec.dimensions), shape, spec.units, spec.description


def _config_text(recipe: Recipe) -> str:
    values: dict[str, Any] = {
        "environment": recipe["environment"],
        "context": recipe["context"],
        "dataset": {"seed": recipe["seed"], **recipe["sizes"], "materialise": recipe["materialise"]},
    }
    if recipe["sizes"]["train"] < TrainConfig.global_batch:
        values["train"] = {"global_batch": recipe["sizes"]["train"]}  # a config's batch is not larger than its data
    text: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    return text
