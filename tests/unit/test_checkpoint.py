"""Weights and config to disk and back; what is not a checkpoint says so."""

import json

import pytest
import safetensors.torch
import torch

from icrl import checkpoint
from icrl.config import LinearBanditConfig, ModelConfig
from icrl.model import Transformer

ENVIRONMENT = LinearBanditConfig(dim=2, n_actions=3, horizon=5, noise_std=0.7)


def build(**options):
    return Transformer(
        ModelConfig(**{"layers": 2, "heads": 2, "embed_dim": 24, "mlp_dim": 10, **options}), ENVIRONMENT, seed=3
    )


@pytest.mark.parametrize(
    "options", [{}, {"preset": "theory", "clip_norm": 12.5}, {"tokens": "merged", "attention": "softmax"}]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_trip(tmp_path, options, dtype):
    model = build(**options).to(dtype)
    checkpoint.save(model, tmp_path / "new" / "folder")
    loaded = checkpoint.load(tmp_path / "new" / "folder")
    assert (loaded.config, loaded.environment, loaded.dtype) == (model.config, model.environment, dtype)
    data = torch.rand(2, 3, 2), torch.ones(2, 5, dtype=torch.uint8), torch.rand(2, 5)
    assert torch.equal(loaded(*data), model(*data))
    described = json.loads((tmp_path / "new" / "folder" / "model.json").read_text())
    assert described["environment"]["noise_std"] == 0.7


def test_saving_again_replaces_the_model(tmp_path):
    checkpoint.save(build(), tmp_path)
    checkpoint.save(build(layers=1), tmp_path)
    assert checkpoint.load(tmp_path).config.layers == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.safetensors"]


def rewritten(directory, change, *, summed=True):
    path = directory / "model.safetensors"
    with safetensors.safe_open(path, framework="pt") as file:
        weights, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    config = json.loads(metadata["icrl"])
    change(weights, config)
    config["sha256"] = checkpoint._sum(config, weights)
    if not summed:
        del config["sha256"]
    safetensors.torch.save_file(weights, path, {"icrl": json.dumps(config)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w, c: w.pop("frame.position"), "1 tensors differ.*frame.position: got nothing"),
        (lambda w, c: w.update(extra=torch.ones(2)), "extra: got .*expected nothing"),
        (lambda w, c: c["model"].update(mlp_dim=11), "mlp_in.bias"),
        (lambda w, c: c["model"].update(colour=1), "colour"),
        (lambda w, c: c.update(format=99), "format 99, expected 2"),
    ],
)
def test_another_model_is_refused(tmp_path, change, message):
    checkpoint.save(build(), tmp_path)
    rewritten(tmp_path, change)
    with pytest.raises(ValueError, match=message):
        checkpoint.load(tmp_path)


def test_weights_of_the_format_without_a_sum_are_still_read(tmp_path):
    checkpoint.save(build(), tmp_path)
    rewritten(tmp_path, lambda w, c: c.update(format=1), summed=False)
    assert checkpoint.load(tmp_path).config == build().config
    rewritten(tmp_path, lambda w, c: c.update(format=2), summed=False)
    with pytest.raises(ValueError, match="do not match their sha256; take another copy, or repeat the command"):
        checkpoint.load(tmp_path)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        checkpoint.load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"half a file")
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        checkpoint.load(tmp_path)
    safetensors.torch.save_file({"x": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="without an icrl config"):
        checkpoint.load(tmp_path)
