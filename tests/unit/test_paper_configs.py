"""configs/paper: every file is accepted, and says what the paper's section 4 says."""

from pathlib import Path

import pytest

from data_gen.plan import plan
from eval.line_up import check, line_up
from icrl.config import BernoulliBanditConfig, LinUCBConfig, ThompsonConfig, UCBConfig, UniformConfig, load

FILES = sorted(Path("configs/paper").glob("*.yaml"))


def context(config):
    return [(component.algorithm, component.weight) for component in config.context]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_is_accepted_and_has_the_paper_s_sizes(file, tmp_path):
    config = load(file, [f"storage.root={tmp_path}"]).config
    check(config)
    assert plan(config).trajectories == config.dataset.train + config.dataset.validation + config.dataset.test
    assert config.name == file.stem
    assert config.environment.horizon == 200
    assert config.dataset.train == 100_000
    assert (config.model.layers, config.model.heads, config.model.embed_dim) == (8, 4, 32)
    assert config.eval.environments == 500


def test_the_four_experiments():
    configs = {file.stem: load(file).config for file in FILES}
    assert list(configs) == ["exp1", "exp2", "exp3", "exp4"]
    bandit = BernoulliBanditConfig(n_actions=5, horizon=200)
    assert [configs[f"exp{n}"].environment for n in (2, 3, 4)] == [bandit] * 3
    assert configs["exp1"].teacher() == LinUCBConfig(ridge=1.0, confidence=2.0)
    assert context(configs["exp2"]) == [(ThompsonConfig(), 0.5), (UniformConfig(), 0.5)]
    assert configs["exp3"].teacher() == UCBConfig(index="shrunk", bonus=1.0)
    assert context(configs["exp4"]) == [(ThompsonConfig(), 0.1), (UniformConfig(), 0.9)]
    assert [config.expert.label for config in configs.values()] == [
        "distillation",
        "optimal",
        "distillation",
        "optimal",
    ]
    for config in configs.values():
        names = [entrant.name for entrant in line_up(config)]
        assert set(names) >= {"transformer", "thompson", "empirical_mean", "uniform", "optimal"}


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 1.0])
def test_alpha_of_experiment_4_is_two_weights(alpha):
    config = load("configs/paper/exp4.yaml", [f"context[0].weight={alpha}", f"context[1].weight={1 - alpha}"]).config
    assert context(config) == [(ThompsonConfig(), alpha), (UniformConfig(), 1 - alpha)]
