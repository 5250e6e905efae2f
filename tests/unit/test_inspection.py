"""The summary of a dataset: figures that are known in closed form, or from an independent computation."""

import re

import numpy as np
import pytest
from typer.testing import CliRunner

import icrl.envs
from data_gen.__main__ import app
from data_gen.generate import generate
from data_gen.inspection import inspect, replayed
from icrl.config import (
    Config,
    ContextComponent,
    DatasetConfig,
    EmpiricalMeanConfig,
    LinearBanditConfig,
    LinUCBConfig,
    TabularMDPConfig,
    TrainConfig,
    UniformConfig,
    load,
)
from icrl.store import SplitReader
from icrl.streams import Split


def made(path, environment, *context, **dataset):
    sizes = {"train": 1500, "validation": 300, "test": 0} | dataset
    config = Config(
        environment=environment,
        context=context,
        dataset=DatasetConfig(path=str(path), **sizes, actors=0),
        train=TrainConfig(global_batch=8),
    )
    generate(config)
    return config


def test_a_bandits_regret_is_the_gap_of_the_stored_means(tmp_path):
    config = made(
        tmp_path / "set",
        LinearBanditConfig(dim=2, n_actions=3, horizon=50),
        ContextComponent(LinUCBConfig(), 0.75),
        ContextComponent(UniformConfig(), 0.25),
        materialise=("means",),
    )
    rows = SplitReader(tmp_path / "set", "train").rows(slice(None))
    means = rows["means"].astype(np.float64)
    gaps = means.max(axis=1)[:, None] - np.take_along_axis(means, rows["action"].astype(np.int64), axis=1)
    found = replayed(config, "train", np.arange(1500), rows["action"])
    np.testing.assert_allclose(found, gaps, atol=1e-6)

    text = "\n".join(inspect(tmp_path / "set"))
    total = gaps.sum(axis=1)
    for name, values in {
        "context": total,
        "0 linucb": total[rows["source"] == 0],
        "1 uniform": total[rows["source"] == 1],
    }.items():
        mean, error = values.mean(), values.std(ddof=1) / np.sqrt(len(values))
        assert re.search(rf"^  {name} .* {mean:.3f} ± {error:.3f}$", text, re.MULTILINE), (name, mean, error, text)
    share = np.mean(rows["source"] == 1)
    assert re.search(rf"^  1 uniform +{share:.4f}  weight 0\.2500$", text, re.MULTILINE)
    counts = np.bincount(rows["action"].ravel(), minlength=3) / rows["action"].size
    for action, count in enumerate(counts):
        assert re.search(rf"^  {action} +{count:.4f} #+$", text, re.MULTILINE)
    assert re.search(r"^train +1,500 trajectories in 6 shards, ", text, re.MULTILINE)


def test_an_mdps_regret_is_what_the_stored_states_and_optimal_values_say(tmp_path):
    environment = TabularMDPConfig(n_states=3, n_actions=2, episode_length=4, episodes=3, start="random")
    config = made(tmp_path / "set", environment, ContextComponent(UniformConfig()), train=600)
    rows = SplitReader(tmp_path / "set", "train").rows(slice(None))
    values = icrl.envs.sample(environment, 0, Split.TRAIN, np.arange(600)).optimal_values
    at = values[np.arange(600)[:, None], np.arange(12) % 4, rows["state"].astype(np.int64)]
    gaps = at.max(axis=2) - np.take_along_axis(at, rows["action"].astype(np.int64)[..., None], axis=2)[..., 0]
    found = replayed(config, "train", np.arange(600), rows["action"])
    np.testing.assert_allclose(found, gaps, atol=1e-6)
    np.testing.assert_array_equal(found[rows["action"] == rows["optimal_action"]], 0)
    text = "\n".join(inspect(tmp_path / "set"))
    total = gaps.sum(axis=1)
    assert f"{total.mean():.3f} ± {total.std(ddof=1) / np.sqrt(600):.3f}\n" in text
    assert f"optimal in {np.mean(found == 0):.4f} of the rounds" in text


def test_other_splits_and_many_actions(tmp_path):
    made(tmp_path / "set", LinearBanditConfig(dim=2, n_actions=40, horizon=20), ContextComponent(UniformConfig()))
    text = "\n".join(inspect(tmp_path / "set", "validation"))
    assert "of 300 trajectories of validation" in text
    (others,) = re.findall(r"the 24 others: (0\.\d+)", text)
    assert 0.5 < float(others) < 0.6
    with pytest.raises(ValueError, match="no trajectories in split test"):
        inspect(tmp_path / "set", "test")
    with pytest.raises(ValueError, match="expected one of train, validation, test"):
        inspect(tmp_path / "set", "tests")


def test_the_command_prints_the_card_and_the_figures(tmp_path):
    made(tmp_path / "set", LinearBanditConfig(dim=2, n_actions=3, horizon=5), ContextComponent(EmpiricalMeanConfig()))
    result = CliRunner().invoke(app, ["inspect", str(tmp_path / "set")])
    assert result.exit_code == 0, result.output
    card = (tmp_path / "set" / "README.md").read_text()
    assert card in result.output
    for line in ("made by         commit", "regret at t", "actions         optimal in", "empirical_mean"):
        assert line in result.output
    (tmp_path / "set" / "_commits" / "train" / "3.json").unlink()
    result = CliRunner().invoke(app, ["inspect", str(tmp_path / "set")])
    assert result.exit_code == 2
    assert "shards are missing" in result.output


def test_a_card_is_a_function_of_the_recipe(tmp_path):
    first = made(tmp_path / "a", LinearBanditConfig(dim=2, n_actions=3, horizon=5), ContextComponent(LinUCBConfig()))
    made(tmp_path / "b", first.environment, *first.context)
    cards = {(tmp_path / name / "README.md").read_bytes() for name in "ab"}
    assert len(cards) == 1
    (card,) = cards
    assert str(tmp_path).encode() not in card
    (text,) = re.findall(r"```yaml\n(.*?)```", card.decode(), re.DOTALL)
    (tmp_path / "again.yaml").write_text(text)
    again = load(tmp_path / "again.yaml").config
    assert (again.environment, again.context) == (first.environment, first.context)
