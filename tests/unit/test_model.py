"""Parameters counted by hand, seeds, the norm, the loss and its label views."""

import math

import pytest
import torch

from icrl.config import LinearBanditConfig, ModelConfig
from icrl.loss import log_loss
from icrl.model import Transformer, clip

ENVIRONMENT = LinearBanditConfig(dim=2, n_actions=3, horizon=7)


def build(seed=0, **options):
    return Transformer(
        ModelConfig(**{"layers": 2, "heads": 2, "embed_dim": 24, "mlp_dim": 10, **options}), ENVIRONMENT, seed=seed
    )


@pytest.mark.parametrize(("tokens", "width", "n_tokens"), [("paper", 9, 14), ("onehot", 11, 14), ("merged", 13, 7)])
def test_practical_parameters_by_part(tokens, width, n_tokens):
    D, inner = 24, 10
    layer = 2 * 2 * D + (3 * D * D + 3 * D) + (D * D + D) + (inner * D + inner) + (D * inner + D)
    parts = {"backbone": 2 * layer + 2 * D, "embedding": width * D + D, "position": n_tokens * D, "read_out": D * 3 + 3}
    assert build(tokens=tokens).num_parameters() == parts | {"total": sum(parts.values())}


def test_theory_parameters_are_the_matrices_of_definitions_1_and_2():
    total = 2 * (3 * 2 * 24 * 24 + 2 * 24 * 10)
    parts = build(preset="theory").num_parameters()
    assert parts == {"backbone": total, "embedding": 0, "position": 0, "read_out": 0, "total": total}


@pytest.mark.parametrize("preset", ["practical", "theory"])
def test_the_seed_alone_decides_the_weights(preset):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = build(preset=preset, seed=5).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again, other = (build(preset=preset, seed=s).state_dict() for s in (5, 6))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if "norm" not in name and "bias" not in name)


def test_operator_norm_of_known_matrices():
    model = build(preset="theory")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        block = model.blocks[1]
        block.query[0, 0, 1], block.key[0, 2, 2], block.query[1, 3, 3] = 3.0, -5.0, 4.0
        block.value[0, 1, 1], block.value[1, 0, 5] = 2.0, -7.0
        block.mlp_in[0, 0], block.mlp_in[0, 1] = 3.0, 4.0
        block.mlp_out[2, 3] = 0.5
    assert model.operator_norm() == pytest.approx(5 + (2 + 7) + 5 + 0.5)


def test_operator_norm_has_no_meaning_beside_layer_norm():
    with pytest.raises(ValueError, match="preset=theory"):
        build().operator_norm()


def test_heads_wider_than_attention_takes_are_refused_at_once():
    with pytest.raises(ValueError, match=r"model.embed_dim = 300: expected at most 256 with model.preset = theory"):
        build(preset="theory", embed_dim=300)


def test_the_clip_of_a_token_of_zeros_has_a_gradient():
    h = torch.zeros(2, 3, requires_grad=True)
    clip(h, 2.0).sum().backward()
    assert torch.equal(h.grad, torch.ones(2, 3))


def test_an_action_set_of_integers_truncates_no_reward():
    sets, action, reward = torch.eye(2).repeat(1, 2, 1)[:, :3], torch.tensor([[0, 2, 1]]), torch.rand(1, 3)
    assert torch.equal(build()(sets.long(), action, reward), build()(sets, action, reward))


def test_the_first_policy_is_near_uniform():
    data = torch.rand(4, 3, 2), torch.zeros(4, 7, dtype=torch.uint8), torch.ones(4, 7)
    assert log_loss(build()(*data), data[1]).mean().item() == pytest.approx(math.log(3), abs=0.2)


def test_log_loss_is_the_negative_log_probability():
    logits = torch.tensor([[[math.log(0.2), math.log(0.5), math.log(0.3)]] * 2], dtype=torch.float64) + 11
    losses = log_loss(logits, torch.tensor([[1, 2]], dtype=torch.uint8))
    torch.testing.assert_close(losses, -torch.log(torch.tensor([[0.5, 0.3]], dtype=torch.float64)))
    assert log_loss(logits.bfloat16(), torch.tensor([[1, 2]])).dtype == torch.float32
