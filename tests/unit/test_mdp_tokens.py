"""Tokens of MDP trajectories by hand, round by round, and the transformer that reads them."""

import numpy as np
import pytest
import torch

from icrl.config import ModelConfig, TabularMDPConfig
from icrl.model import Transformer
from icrl.policy import TransformerPolicy
from icrl.rollout.loop import play
from icrl.streams import Split
from icrl.tokens import TheoryLayout, required_width, tokenizer_of

MDP = TabularMDPConfig(n_states=3, n_actions=2, episode_length=2, episodes=3)
STATE = torch.tensor([[0, 2, 1, 1, 0, 2]])
ACTION = torch.tensor([[1, 0, 0, 1, 1, 0]])
REWARD = torch.tensor([[0.5, 0.25, 1.0, 0.0, 0.125, 2.0]])


def model(kind, preset="practical", dtype=torch.float64):
    width = required_width(tokenizer_of(MDP, kind), 2) if preset == "theory" else 8
    config = ModelConfig(preset=preset, layers=2, heads=2, embed_dim=width, mlp_dim=8, tokens=kind)
    return Transformer(config, MDP, seed=3).to(dtype)


def test_paper_tokens_are_two_a_step_and_an_empty_one_an_episode():
    fields = tokenizer_of(MDP, "paper").encode(STATE, ACTION, REWARD)[0].tolist()
    ask = {0: [0, 0, 0, 1, 0, 0], 1: [0, 0, 0, 0, 1, 0], 2: [0, 0, 0, 0, 0, 1]}
    first = [ask[0], [0, 1, 0.5, 0, 0, 0], ask[2], [1, 0, 0.25, 0, 0, 0], [0] * 6]
    second = [ask[1], [1, 0, 1, 0, 0, 0], ask[1], [0, 1, 0, 0, 0, 0], [0] * 6]
    assert fields[:10] == first + second
    assert len(fields) == 15


def test_merged_tokens_tell_the_previous_round():
    fields = tokenizer_of(MDP, "merged").encode(STATE, ACTION, REWARD)[0].tolist()
    assert fields[:3] == [[0, 0, 0, 1, 0, 0], [0, 1, 0.5, 0, 0, 1], [1, 0, 0.25, 0, 1, 0]]


def test_what_came_before_a_first_round_means_nothing():
    previous = (torch.tensor([1, 1]), torch.tensor([0.5, torch.nan]))
    fields = tokenizer_of(MDP, "merged").step(torch.tensor([2, 2]), previous, torch.tensor([3, 0]))
    assert fields[:, 0].tolist() == [[0, 1, 0.5, 0, 0, 1], [0, 0, 0, 0, 0, 1]]


def test_positions_count_episodes_and_steps():
    tokenizer = tokenizer_of(MDP, "paper")
    layout = TheoryLayout(tokenizer, 2, 20)
    tokens = layout.place(tokenizer.encode(STATE, ACTION, REWARD), 0)[0, :, layout.position]
    expected = [[1, 1, 1], [1, 1, 0], [1, 2, 1], [1, 2, 0], [1, 3, 1], [2, 1, 1], [2, 1, 0]]
    assert tokens[:7, :3].tolist() == expected
    assert tokens[6].tolist() == [2, 1, 0, 7, 49, 1]


@pytest.mark.parametrize("kind", ["paper", "merged"])
@pytest.mark.parametrize("preset", ["practical", "theory"])
def test_round_by_round_is_the_whole_pass(kind, preset):
    transformer = model(kind, preset)
    whole = transformer(STATE, ACTION, REWARD)
    assert whole.shape == (1, 6, 2)
    cache = transformer.new_cache(1)
    with torch.inference_mode():
        for t in range(6):
            previous = (ACTION[:, t - 1], REWARD[:, t - 1]) if t else None
            logits = transformer.forward_cached(STATE[:, t], previous, cache)
            torch.testing.assert_close(logits, whole[:, t].detach(), rtol=1e-12, atol=1e-12)
            prefix = transformer(STATE[:, : t + 1], ACTION[:, : t + 1], REWARD[:, : t + 1])
            torch.testing.assert_close(prefix[:, -1], whole[:, t].detach(), rtol=1e-12, atol=1e-12)


def test_the_future_reaches_no_prediction():
    transformer = model("paper")
    before = transformer(STATE, ACTION, REWARD)
    changed = [values.clone() for values in (STATE, ACTION, REWARD)]
    changed[0][:, 4:], changed[1][:, 3:], changed[2][:, 3:] = 1, 0, 9.0
    assert torch.equal(before[:, :4], transformer(*changed)[:, :4])


@pytest.mark.parametrize("kind", ["paper", "merged"])
def test_it_plays_and_the_cache_changes_nothing(kind):
    index = np.arange(5)
    cached = play(MDP, TransformerPolicy(model(kind)), 0, Split.EVAL, index)
    rerun = play(MDP, TransformerPolicy(model(kind), cache=False), 0, Split.EVAL, index)
    np.testing.assert_array_equal(cached.action, rerun.action)
    np.testing.assert_array_equal(cached.state, rerun.state)


def test_other_environments_are_refused():
    other = TabularMDPConfig(n_states=4, n_actions=2, episode_length=2, episodes=3)
    with pytest.raises(ValueError, match="4 states, 2 actions and 2 steps an episode: the model"):
        play(other, TransformerPolicy(model("paper")), 0, Split.EVAL, np.arange(2))


def test_onehot_is_refused_with_the_reason():
    with pytest.raises(ValueError, match="expected paper or merged"):
        tokenizer_of(MDP, "onehot")


@pytest.mark.parametrize("backend", ["native", "plain"])
def test_interactions_in_rounds_of_their_own(backend):
    transformer = model("merged")
    cache = transformer.new_cache(2, backend=backend)
    state, action, reward = (torch.cat([x, x.flip(1)]) for x in (STATE, ACTION, REWARD))
    whole = transformer(state, action, reward)
    with torch.inference_mode():
        for t in range(3):
            transformer.forward_cached(state[:, t], (action[:, t - 1], reward[:, t - 1]) if t else None, cache)
        cache.reset([1])
        for t in range(3, 6):
            own = torch.tensor([t, t - 3])
            before = (own - 1).clamp(min=0)
            rows = torch.arange(2)
            logits = transformer.forward_cached(state[rows, own], (action[rows, before], reward[rows, before]), cache)
            torch.testing.assert_close(logits, whole[rows, own].detach(), rtol=1e-12, atol=1e-12)


def test_paper_tokens_keep_step():
    transformer = model("paper")
    cache = transformer.new_cache(2)
    cache.reset([1])
    with pytest.raises(ValueError, match=r"model\.tokens = merged"):
        transformer.forward_cached(STATE[0, :2], (ACTION[0, :2], REWARD[0, :2]), cache)
