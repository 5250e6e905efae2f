"""Sources: the virtual one gives the bytes of the stored one, writes nothing, and does not end."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import icrl.envs
from data_gen.__main__ import app
from data_gen.generate import generate
from data_gen.plan import plan
from icrl.config import (
    BernoulliBanditConfig,
    Config,
    ConfigError,
    ContextComponent,
    DatasetConfig,
    EmpiricalMeanConfig,
    GaussianBanditConfig,
    GridWorldConfig,
    LinearBanditConfig,
    LinUCBConfig,
    TabularMDPConfig,
    TrainConfig,
    UniformConfig,
    config_hash,
    override,
)
from icrl.source import VirtualSource, open_source
from icrl.store import SPLITS, SplitReader
from icrl.streams import Split

N = 700
CASES = {
    "linear mixture, materialised": Config(
        environment=LinearBanditConfig(dim=2, n_actions=3, horizon=5),
        context=(ContextComponent(LinUCBConfig(), 0.7), ContextComponent(UniformConfig(), 0.3)),
        dataset=DatasetConfig(materialise=("theta", "action_set")),
    ),
    "Bernoulli": Config(
        environment=BernoulliBanditConfig(n_actions=3, horizon=5), context=(ContextComponent(EmpiricalMeanConfig()),)
    ),
    "MDP": Config(
        environment=TabularMDPConfig(n_states=2, n_actions=2, episode_length=3, episodes=2),
        context=(ContextComponent(UniformConfig()),),
    ),
}


@pytest.fixture(scope="module", params=CASES, ids=str)
def config(request, tmp_path_factory):
    case = CASES[request.param]
    place = {"path": str(tmp_path_factory.mktemp("set")), "train": N, "validation": 300, "test": 0, "actors": 0}
    made = dataclasses.replace(
        case, dataset=dataclasses.replace(case.dataset, seed=3, **place), train=TrainConfig(global_batch=8)
    )
    generate(made)
    return made


def virtual(config, *more):
    return override(config, ["dataset.source=virtual", *more])


def same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name], values, strict=True)


def test_virtual_is_stored_byte_for_byte(config):
    for split in ("train", "validation"):
        stored, computed = open_source(config, split), open_source(virtual(config), split)
        assert isinstance(stored, SplitReader)
        assert isinstance(computed, VirtualSource)
        assert (stored.n, stored.geometry, stored.recipe) == (computed.n, computed.geometry, computed.recipe)
        assert sorted(stored.specs, key=str) == sorted(computed.specs, key=str)
        for chunk in range(stored.geometry.n_chunks):
            same(computed.chunk(chunk), stored.chunk(chunk))
        rows = np.random.default_rng(0).permutation(44)[:17]  # the last chunk is short
        last = stored.geometry.n_chunks - 1
        same(computed.chunk(last, rows), stored.chunk(last, rows))
        same(stored.chunk(last, rows), {name: values[rows] for name, values in stored.chunk(last).items()})
        for part in (slice(200, 290), slice(7, 7), slice(None)):
            same(computed.rows(part), stored.rows(part))


def test_chunks_past_the_end_go_on_at_new_trajectories(config):
    source = open_source(virtual(config), "train")
    longer = open_source(virtual(config, f"dataset.train={3 * N}"), "train")
    for epoch in range(3):
        parts = [source.chunk(epoch * source.geometry.n_chunks + c) for c in range(source.geometry.n_chunks)]
        whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        same(whole, longer.rows(slice(epoch * N, (epoch + 1) * N)))


def test_a_virtual_dataset_writes_nothing_and_says_so(config, tmp_path):
    asked = virtual(config, f"dataset.path={tmp_path / 'nothing'}", "dataset.actors=2")
    assert plan(asked).complete
    assert "virtual" in plan(asked).describe()
    assert generate(asked).shards_written == 0  # without Ray, though it asks for actors
    result = CliRunner().invoke(
        app, ["configs/demo.yaml", "dataset.source=virtual", f"storage.root={tmp_path}", "dataset.train=100000000000"]
    )
    assert result.exit_code == 2, "the bounds hold for virtual ones, too"
    result = CliRunner().invoke(app, ["configs/demo.yaml", "dataset.source=virtual", f"storage.root={tmp_path}"])
    assert result.exit_code == 0
    assert "dataset         virtual: 208,192 trajectories" in result.output
    assert "environments is in two splits" in result.output
    assert "nothing to write; next: python -m train configs/demo.yaml dataset.source=virtual" in result.output
    assert list(tmp_path.iterdir()) == []


def test_unknown_splits_are_refused(config):
    for asked in (config, virtual(config)):
        with pytest.raises(ValueError, match=f"split 'eval': expected one of {', '.join(SPLITS)}"):
            open_source(asked, "eval")


def test_fresh_data_needs_a_virtual_source_and_is_another_run(config):
    with pytest.raises(ConfigError, match=r"dataset\.fresh = True: expected false with source stored; set dataset\.s"):
        override(config, ["dataset.fresh=true"])
    assert config_hash(virtual(config)) == config_hash(config)
    assert config_hash(virtual(config, "dataset.fresh=true")) != config_hash(config)


@given(
    environment=st.sampled_from(
        [
            LinearBanditConfig(dim=1, n_actions=2, horizon=3),
            LinearBanditConfig(dim=3, n_actions=7, horizon=3),
            BernoulliBanditConfig(n_actions=4, horizon=3),
            GaussianBanditConfig(n_actions=4, horizon=3),
        ]
    ),
    seed=st.integers(0, 2**63 - 1),
    split=st.sampled_from(Split),
    indices=st.lists(st.integers(0, 2**40), min_size=1, max_size=90),
)
def test_action_sets_alone_are_those_of_the_environments(environment, seed, split, indices):
    index = np.array(indices, np.int64)
    alone = icrl.envs.action_sets(environment, seed, split, index)
    np.testing.assert_array_equal(alone, icrl.envs.sample(environment, seed, split, index).action_set, strict=True)


def test_grid_worlds_are_sources_too():
    config = Config(
        environment=GridWorldConfig(side=2, episode_length=3, episodes=2), context=(ContextComponent(UniformConfig()),)
    )
    rows = open_source(virtual(config), "test").rows(slice(0, 5))
    assert rows["state"].shape == rows["action"].shape == (5, 6)
