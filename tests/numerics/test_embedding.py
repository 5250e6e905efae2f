"""A construction inside a larger trainable model: the same function, gradients everywhere, the way into training."""

import json
import subprocess
import sys

import pytest
import torch

from icrl import checkpoint
from icrl.config import Config, ConfigError, LinearBanditConfig, ModelConfig, StorageConfig, TrainConfig, to_dict
from icrl.constructions import embed, hold_positions, linucb
from icrl.model import Transformer

BANDIT = LinearBanditConfig(dim=2, n_actions=3, horizon=6)
SIZES = {"method": "log_depth", "ridge_layers": 3, "knots": 5}


def history(n=3):
    g = torch.Generator().manual_seed(1)
    shown, reward = torch.rand(n, 3, 2, generator=g), torch.randn(n, 6, generator=g)
    return shown, torch.randint(0, 3, (n, 6), generator=g), reward


@pytest.mark.parametrize("sizes", [{}, {"layers": 8, "heads": 20, "mlp_dim": 40, "embed_dim": 50}])
def test_embedded_it_is_the_same_function_and_all_of_it_can_learn(sizes):
    construction = linucb(BANDIT, **SIZES)
    model = embed(construction, **sizes)
    assert {name: getattr(model.config, name) for name in sizes} == sizes
    torch.testing.assert_close(model(*history()), construction(*history()), rtol=1e-9, atol=1e-9)
    if sizes:
        model(*history()).log_softmax(-1)[..., 0].sum().backward()
        for block in model.blocks:
            assert block.value.grad[-4:].abs().max() > 0, "heads the construction does not take"
            assert block.mlp_out.grad[:, -20:].abs().max() > 0, "and neurons"


def test_noise_moves_the_function_by_as_much_and_the_seed_decides_it():
    construction = linucb(BANDIT, **SIZES)
    exact = construction(*history())
    moved = [
        (embed(construction, heads=20, noise=noise)(*history()) - exact).abs().max().item() for noise in (1e-6, 1e-4)
    ]
    assert 0 < moved[0] < moved[1]
    assert moved[1] / moved[0] == pytest.approx(100, rel=0.1)
    first, same, other = (embed(construction, heads=20, noise=0.1, seed=s).blocks[0].value for s in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_what_cannot_be_embedded_says_why():
    construction = linucb(BANDIT, **SIZES)
    for name in ("layers", "heads", "mlp_dim", "embed_dim"):
        with pytest.raises(ValueError, match=rf"{name} = 1: expected at least the construction's {{?\d+"):
            embed(construction, **{name: 1})
    with pytest.raises(ValueError, match="noise = -1"):
        embed(construction, noise=-1.0)
    with pytest.raises(ValueError, match="dense layers"):
        embed(embed(construction))


def test_training_starts_from_saved_weights_of_the_same_shapes(tmp_path):
    construction = linucb(BANDIT, **SIZES)
    embedded = embed(construction, heads=20)
    checkpoint.save(embedded, tmp_path / "embedded")
    checkpoint.save(construction, tmp_path / "factors")
    config = Config(
        environment=BANDIT,
        model=embedded.config,
        storage=StorageConfig(str(tmp_path)),
        train=TrainConfig(init_from="embedded"),
    )
    start = checkpoint.starting_point(config)
    assert checkpoint.starting_point(Config()) is None
    model = Transformer(config.model, BANDIT)
    checkpoint.start_from(model, start)
    assert model.dtype == torch.float32
    torch.testing.assert_close(model(*history()), construction(*history()).float(), rtol=1e-4, atol=1e-4)
    with torch.device("meta"):
        checkpoint.start_from(Transformer(config.model, BANDIT), start, check_only=True)
    cases = [
        (
            ModelConfig(preset="theory", embed_dim=60),
            "embedded",
            r"blocks\.0\.key is \(20, 36, 36\) there and \(4, 60, 60\) in the model",
        ),
        (config.model, "factors", r"factors.*icrl\.constructions\.embed"),
        (config.model, "nowhere", r"nowhere: expected a directory with model\.safetensors"),
    ]
    for sizes, where, message in cases:
        with pytest.raises(ValueError, match=message):
            checkpoint.start_from(Transformer(sizes, BANDIT), tmp_path / where, check_only=True)


def test_held_positions_have_no_gradient_and_all_else_has():
    model = embed(linucb(BANDIT, **SIZES), heads=20, mlp_dim=40, noise=0.01)
    hold_positions(model)
    model(*history()).log_softmax(-1)[..., 0].sum().backward()
    for block in model.blocks[:-1]:
        for weight in (block.query, block.key, block.value, block.mlp_in):
            assert (weight.grad[..., -3:-1] == 0).all()
            assert weight.grad[..., -1].abs().max() > 0, "the constant 1 is free"
    with pytest.raises(ValueError, match=r"model\.preset = practical"):
        hold_positions(Transformer(ModelConfig(), BANDIT))
    with pytest.raises(ConfigError, match=r"train\.hold_positions"):
        Config(train=TrainConfig(hold_positions=True))


@pytest.mark.slow
def test_a_run_starts_at_the_construction(tmp_path):
    """Through `python -m train`: after small steps weights are near the construction's, held ones its own."""
    embedded = embed(linucb(BANDIT, **SIZES))
    checkpoint.save(embedded, tmp_path / "start")
    sizes = json.dumps(to_dict(embedded.config))
    (tmp_path / "tiny.yaml").write_text(
        "environment: {kind: linear_bandit, dim: 2, n_actions: 3, horizon: 6}\n"
        "dataset: {train: 64, validation: 16, test: 0, source: virtual}\n"
        f"model: {sizes}\n"
        "train: {steps: 2, global_batch: 8, workers: 1, init_from: start, hold_positions: true,\n"
        "        optimizer: {lr: 1e-6, weight_decay: 0.0}, schedule: {warmup: 0}}\n"
    )
    command = [sys.executable, "-m", "train", tmp_path / "tiny.yaml", f"storage.root={tmp_path}", "run.dir=run"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    trained = checkpoint.load(tmp_path / "run")
    for ours, start in zip(trained.blocks, embedded.float().blocks, strict=True):
        for name in ("query", "key", "value", "mlp_in"):
            a, b = getattr(ours, name), getattr(start, name)
            assert torch.equal(a[..., -3:-1], b[..., -3:-1])
            torch.testing.assert_close(a, b, rtol=0, atol=3e-6)
    assert not torch.equal(trained.blocks[0].value, embedded.blocks[0].value)
