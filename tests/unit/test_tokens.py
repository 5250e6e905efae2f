"""Tokens by hand, their widths, and the step-wise encoding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from icrl.config import LinearBanditConfig, ModelConfig
from icrl.model import Transformer
from icrl.tokens import TheoryLayout, required_width, tokenizer_of

KINDS = ["paper", "onehot", "merged"]
SMALL = LinearBanditConfig(dim=2, n_actions=3, horizon=2)
ACTION_SET = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]])
ACTION = torch.tensor([[2, 0]], dtype=torch.uint8)
REWARD = torch.tensor([[0.5, -1.0]])


def encoded(kind):
    return tokenizer_of(SMALL, kind).encode(ACTION_SET, ACTION, REWARD)[0].tolist()


def test_paper_tokens_are_the_blocks_a_and_b():
    ask = [0, 0, 0, 1, 2, 3, 4, 5, 6]
    assert encoded("paper") == [ask, [5, 6, 0.5, 0, 0, 0, 0, 0, 0], ask, [1, 2, -1, 0, 0, 0, 0, 0, 0]]


def test_onehot_tokens():
    ask = [1, 2, 3, 4, 5, 6, 0, 0, 0, 0, 1]
    first, second = [0] * 6 + [0, 0, 1, 0.5, 1], [0] * 6 + [1, 0, 0, -1, 1]
    assert encoded("onehot") == [ask, first, ask, second]


def test_merged_tokens_tell_the_previous_round():
    flat = [1, 2, 3, 4, 5, 6]
    assert encoded("merged") == [[*flat, 0, 0, 0, 0, 0, 0, 1], [*flat, 0, 0, 1, 5, 6, 0.5, 0]]


def test_theory_layout_holds_blocks_and_positions():
    tokenizer = tokenizer_of(SMALL, "paper")
    layout = TheoryLayout(tokenizer, 3, 17)
    tokens = layout.place(tokenizer.encode(ACTION_SET, ACTION, REWARD), 0)[0]
    assert tokens[2].tolist() == [0, 0, 0, 1, 2, 3, 4, 5, 6] + [0] * 5 + [3, 9, 1]
    assert (layout.logits, layout.scratch, layout.position) == (slice(9, 12), slice(12, 14), slice(14, 17))


@given(
    kind=st.sampled_from(KINDS),
    dim=st.integers(1, 4),
    n_actions=st.integers(2, 6),
    horizon=st.integers(1, 5),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_round_by_round_gives_the_same_bits(kind, dim, n_actions, horizon, seed):
    tokenizer = tokenizer_of(LinearBanditConfig(dim=dim, n_actions=n_actions, horizon=horizon), kind)
    generator = torch.Generator().manual_seed(seed)
    action_set = torch.randn(3, n_actions, dim, generator=generator)
    action = torch.randint(0, n_actions, (3, horizon), generator=generator).to(torch.uint8)
    reward = torch.randn(3, horizon, generator=generator)
    steps = [tokenizer.step(action_set, (action[:, t - 1], reward[:, t - 1]) if t else None, 0) for t in range(horizon)]
    stepped, whole = torch.cat(steps, 1), tokenizer.encode(action_set, action, reward)
    assert whole.shape == (3, tokenizer.n_tokens, tokenizer.width)
    assert torch.equal(stepped, whole[:, : stepped.shape[1]])
    assert stepped.shape[1] == range(tokenizer.n_tokens)[tokenizer.prediction][-1] + 1


@pytest.mark.parametrize(
    ("kind", "width"), [("paper", 2 + 1 + 6 + 3 + 3), ("onehot", 6 + 3 + 2 + 6), ("merged", 6 + 3 + 4 + 6)]
)
def test_theory_preset_needs_room_for_its_blocks(kind, width):
    assert required_width(tokenizer_of(SMALL, kind), 3) == width
    options = {"preset": "theory", "tokens": kind, "layers": 1, "heads": 1, "mlp_dim": 4}
    Transformer(ModelConfig(embed_dim=width, **options), SMALL)
    with pytest.raises(ValueError, match=f"embed_dim = {width - 1}: expected at least {width}"):
        Transformer(ModelConfig(embed_dim=width - 1, **options), SMALL)
