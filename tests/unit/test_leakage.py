"""No environment is in two splits, and the comparison notices where one is."""

import pytest

from icrl import streams
from icrl.config import (
    BernoulliBanditConfig,
    GaussianBanditConfig,
    GridWorldConfig,
    LinearBanditConfig,
    TabularMDPConfig,
)
from icrl.envs.leakage import leakage

KINDS = [
    LinearBanditConfig(dim=2, n_actions=3, horizon=5),
    BernoulliBanditConfig(n_actions=3, horizon=5),
    GaussianBanditConfig(n_actions=3, horizon=5),
    TabularMDPConfig(n_states=2, n_actions=2, episode_length=3, episodes=2),
    TabularMDPConfig(n_states=2, n_actions=2, episode_length=3, episodes=2, stationary=False, reward="sparse"),
]
SIZES = {"train": 3000, "validation": 150, "test": 70}


@pytest.mark.parametrize("environment", KINDS, ids=str)
def test_splits_share_no_environment(environment):
    found = leakage(environment, 0, SIZES, limit=500)
    assert found.compared == {"train": 500, "validation": 150, "test": 70}
    assert set(found.shared) == {("train", "validation"), ("train", "test"), ("validation", "test")}
    assert not any(found.shared.values())
    assert not found.found
    assert found.describe() == "none of 500 train + 150 validation + 70 test environments is in two splits"


@pytest.mark.parametrize("environment", KINDS, ids=str)
def test_a_key_without_the_split_is_found(environment, monkeypatch):
    monkeypatch.setattr(streams, "tag_word", lambda split, stream, use, tag=streams.tag_word: tag(0, stream, use))
    found = leakage(environment, 0, SIZES, limit=500)
    assert found.found
    assert found.shared == {("train", "validation"): 150, ("train", "test"): 70, ("validation", "test"): 70}
    assert found.describe().endswith(
        "150 in train and validation, 70 in train and test, 70 in validation and test: a leak"
    )


def test_a_prior_of_few_environments_is_said_to_be_one():
    found = leakage(GridWorldConfig(side=3, episode_length=3, episodes=2), 0, SIZES)
    assert set(found.shared.values()) == {9}
    assert found.finite
    assert not found.found
    assert found.describe().endswith("9 in validation and test: the prior has few")


def test_an_empty_split_shares_nothing():
    assert leakage(KINDS[0], 0, {"train": 10, "test": 0}).shared == {("train", "test"): 0}
