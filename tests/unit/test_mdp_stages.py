"""The shipped configs of MDPs through data generation."""

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from data_gen.__main__ import app
from data_gen.generate import generate
from icrl.config import load
from icrl.rollout import compiled
from icrl.rollout import generate as roll_out
from icrl.store import SplitReader
from icrl.streams import Split

CONFIGS = sorted(Path("configs/mdp").glob("*.yaml"))
FEW = ("dataset.actors=0", "dataset.train=600", "dataset.validation=40", "dataset.test=40")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_a_dry_run_says_what_there_is_to_do(path, tmp_path):
    answer = CliRunner().invoke(app, [str(path), "--dry-run", f"storage.root={tmp_path}"])
    assert answer.exit_code == 0, answer.output
    assert "110,000" in answer.output
    assert not list(tmp_path.rglob("*.zarr"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_a_dataset_holds_what_the_rollout_plays(path, tmp_path):
    config = load(path, [*FEW, f"storage.root={tmp_path}"]).config
    assert all(compiled(config.environment, component.algorithm) for component in config.context)
    summary = generate(config)
    assert summary.trajectories == 680
    reader = SplitReader(summary.dataset, "train")
    played = roll_out(config.environment, config.context, config.dataset.seed, Split.TRAIN, np.arange(600))
    stored = [reader.chunk(i) for i in range(reader.n_chunks)]
    for name, values in played.arrays().items():
        np.testing.assert_array_equal(np.concatenate([chunk[name] for chunk in stored]), values)
    assert played.state.max() < config.environment.n_states


def test_the_dirichlet_config_s_teacher_learns_within_its_horizon():
    config = load(Path("configs/mdp/dirichlet.yaml")).config
    played = roll_out(config.environment, config.context, 0, Split.EVAL, np.arange(300))
    reward = played.reward.reshape(300, config.environment.episodes, -1).sum(axis=2).mean(axis=0)
    assert reward[-10:].mean() > 1.25 * reward[:10].mean()
