"""A construction inside a larger trainable model: the same function, gradients everywhere, the way into training."""

import pytest
import torch

from icrl import checkpoint
from icrl.config import Config, LinearBanditConfig, ModelConfig, StorageConfig, TrainConfig
from icrl.constructions import embed, linucb
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
