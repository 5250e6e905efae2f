"""The shipped configs of MDPs through data generation, and a small one through all stages."""

from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import icrl.checkpoint
from data_gen.__main__ import app
from data_gen.generate import generate
from eval.run import evaluate_run
from icrl.config import load
from icrl.model import Transformer
from icrl.rollout import compiled
from icrl.rollout import generate as roll_out
from icrl.run_dir import RunDirectory
from icrl.store import SplitReader, dataset_path
from icrl.streams import Split
from train.dataset import TrajectoryStream
from train.loop import LossModule

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


@pytest.mark.parametrize("tokens", ["paper", "merged"])
def test_a_transformer_learns_from_states_and_is_evaluated(tokens, tmp_path):
    small = (
        "environment.n_states=3",
        "environment.n_actions=2",
        "environment.episode_length=2",
        "environment.episodes=6",
    )
    model = ("model.layers=1", "model.heads=2", "model.embed_dim=16", "model.mlp_dim=16", f"model.tokens={tokens}")
    loaded = load(CONFIGS[1], [*FEW, *small, *model, "eval.environments=40", f"storage.root={tmp_path}"])
    config = loaded.config
    assert config.name == "mdp-dirichlet"
    generate(config)
    stream = TrajectoryStream(SplitReader(dataset_path(config), "train"), config.environment, global_batch=64, seed=0)
    module = LossModule(Transformer(config.model, config.environment, seed=3))
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    losses = []
    for step in range(40):
        batch = stream.batch(step)
        tensors = [torch.from_numpy(np.array(batch[name])) for name in ("state", "action", "reward", "action")]
        loss = module(tensors[0], tensors[1].long(), tensors[2], tensors[3].long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-5:]) < 0.9 * losses[0]

    run = RunDirectory.open(loaded)
    icrl.checkpoint.save(module.transformer, run.path)
    run.set_status("trained", step=40)
    results = evaluate_run(run, config)
    assert results.algorithms["optimal"].final_regret == 0
    assert 0 < results.algorithms["transformer"].final_regret < 2 * results.algorithms["uniform"].final_regret
    assert results.imitation is not None
