"""zarr-python, xarray and tensorstore open a dataset from its path alone and read what ours reads."""

import dataclasses
import re
import warnings

import numpy as np
import pytest
import tensorstore
import xarray
import zarr

from data_gen.generate import generate
from icrl.config import (
    Config,
    ContextComponent,
    DatasetConfig,
    LinearBanditConfig,
    TabularMDPConfig,
    TrainConfig,
    UniformConfig,
)
from icrl.store import SPLITS, SplitReader

SIZES = {"train": 2100, "validation": 300, "test": 0}
"""Shards of several chunks and ragged ends, one shard, none."""

DIMENSIONS = {
    "bandit": {
        "action": ("trajectory", "round"),
        "reward": ("trajectory", "round"),
        "optimal_action": ("trajectory",),
        "source": ("trajectory",),
        "theta": ("trajectory", "feature"),
        "action_set": ("trajectory", "action_index", "feature"),
        "means": ("trajectory", "action_index"),
    },
    "mdp": {
        "action": ("trajectory", "round"),
        "reward": ("trajectory", "round"),
        "optimal_action": ("trajectory", "round"),
        "source": ("trajectory",),
        "state": ("trajectory", "round"),
        "optimal_policy": ("trajectory", "step", "state_index"),
    },
}


@pytest.fixture(scope="module", params=["bandit", "mdp"])
def made(request, tmp_path_factory):
    """The kind of environment and a dataset of it."""
    dataset = tmp_path_factory.mktemp("readers") / "set"
    config = Config(
        environment=LinearBanditConfig(dim=2, n_actions=3, horizon=10),
        dataset=DatasetConfig(path=str(dataset), **SIZES, materialise=("theta", "action_set", "means"), actors=0),
        train=TrainConfig(global_batch=8),
    )
    if request.param == "mdp":
        config = dataclasses.replace(
            config,
            environment=TabularMDPConfig(n_states=3, n_actions=2, episode_length=4, episodes=3),
            context=(ContextComponent(UniformConfig()),),
            dataset=dataclasses.replace(config.dataset, materialise=()),
        )
    generate(config)
    return request.param, dataset


@pytest.fixture(params=SPLITS)
def ours(request, made):
    """The kind, the split's directory, its arrays as our reader reads them, and its specs."""
    kind, dataset = made
    reader = SplitReader(dataset, request.param)
    assert reader.n == SIZES[request.param]
    return kind, dataset / f"{request.param}.zarr", reader.rows(slice(None)), reader.specs


def test_zarr_python_reads_the_same_values_names_and_units(ours):
    kind, path, arrays, specs = ours
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        group = zarr.open_group(path, mode="r")
        found = dict(group.arrays())
    assert set(found) == set(arrays) == set(DIMENSIONS[kind])
    for spec in specs:
        array = found[spec.name]
        assert array.metadata.dimension_names == DIMENSIONS[kind][spec.name]
        assert (array.attrs["units"], array.attrs["description"]) == (spec.units, spec.description)
        np.testing.assert_array_equal(array[:], arrays[spec.name], strict=True)


def test_xarray_reads_the_same_values_names_and_units(ours):
    kind, path, arrays, specs = ours
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = xarray.open_zarr(path, consolidated=False)
    assert set(dataset.data_vars) == set(arrays)
    assert dataset.attrs["n_trajectories"] == len(arrays["action"])
    for spec in specs:
        variable = dataset[spec.name]
        assert variable.dims == DIMENSIONS[kind][spec.name]
        assert variable.attrs["units"] == "1"
        np.testing.assert_array_equal(variable.values, arrays[spec.name], strict=True)
    some = dataset.isel(trajectory=slice(250, 260)).reward.values
    np.testing.assert_array_equal(some, arrays["reward"][250:260], strict=True)


def test_xarray_opens_it_from_the_path_alone(made):
    _, dataset = made
    # it looks for metadata in one piece first, and says so when there is none
    with pytest.warns(RuntimeWarning, match="non-consolidated"):
        found = xarray.open_zarr(dataset / "train.zarr")
    assert found.sizes["trajectory"] == SIZES["train"]


def test_tensorstore_reads_the_same_values_and_names(ours):
    kind, path, arrays, specs = ours
    for spec in specs:
        store = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path / spec.name)}}
        array = tensorstore.open(store, read=True).result()
        assert array.domain.labels == DIMENSIONS[kind][spec.name]
        assert array.spec().to_json(include_defaults=True)["metadata"]["attributes"]["units"] == spec.units
        np.testing.assert_array_equal(array.read().result(), arrays[spec.name], strict=True)


def test_the_card_tells_the_same_and_its_program_runs(made, monkeypatch):
    kind, dataset = made
    card = (dataset / "README.md").read_text()
    for name, dimensions in DIMENSIONS[kind].items():
        assert re.search(rf"\| `{name}` \| \w+ \| {', '.join(dimensions)} \|", card)
    assert "| `train` | 2,100 |" in card
    assert "Apache-2.0" in card
    expected = SplitReader(dataset, "train").rows(slice(0, 100))["reward"]
    (program,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    monkeypatch.chdir(dataset)
    for part in program.split("\n\n"):
        names: dict = {}
        exec(part, names)
        np.testing.assert_array_equal(names["reward"], expected, strict=True)


def test_the_config_on_the_card_makes_the_same_dataset_again(made, tmp_path):
    _, dataset = made
    (text,) = re.findall(r"```yaml\n(.*?)```", (dataset / "README.md").read_text(), re.DOTALL)
    (tmp_path / "config.yaml").write_text(text)
    from icrl.config import load

    again = tmp_path / "again"
    generate(load(tmp_path / "config.yaml", [f"dataset.path={again}", "dataset.actors=0"]).config)
    for name in ("recipe.json", "README.md", "train.zarr/reward/c.3.0", "_commits/validation/1.json"):
        assert (again / name).read_bytes() == (dataset / name).read_bytes()
