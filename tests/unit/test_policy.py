"""The transformer as an algorithm: cached and recomputed rollouts, teacher forcing, sampling, and what it refuses."""

import itertools

import numpy as np
import pytest
import torch

from icrl.config import LinearBanditConfig, ModelConfig
from icrl.envs import rewards, sample
from icrl.model import Transformer
from icrl.policy import TransformerPolicy
from icrl.streams import Split
from tests.fixed_draws import FixedDraws

CONFIG = LinearBanditConfig(dim=2, n_actions=4, horizon=6)


def build(tokens="merged"):
    model = Transformer(ModelConfig(layers=2, heads=2, embed_dim=16, mlp_dim=32, tokens=tokens), CONFIG, seed=2)
    with torch.no_grad():
        model.frame.read_out.weight *= 30  # away from uniform
    return model


def environments(n=7, first=0):
    return sample(CONFIG, 9, Split.EVAL, np.arange(first, first + n))


def rollout(policy, batch, seed=0):
    rng = np.random.default_rng(seed)
    probabilities, actions, received = [], [], []
    policy.reset(batch)
    for _ in range(CONFIG.horizon):
        probabilities.append(policy.probabilities())
        actions.append(policy.act(FixedDraws(rng.random(batch.index.size, dtype=np.float32))))
        noise = rng.standard_normal(batch.index.size, dtype=np.float32)
        received.append(rewards(CONFIG, batch.means, actions[-1], noise))
        policy.update(actions[-1], received[-1])
    return np.stack(probabilities, 1), np.stack(actions, 1), np.stack(received, 1)


@pytest.mark.parametrize("tokens", ["paper", "onehot", "merged"])
def test_cached_recomputed_and_teacher_forced_agree(tokens):
    model, batch = build(tokens).double(), environments()
    cached = rollout(TransformerPolicy(model), batch)
    recomputed = rollout(TransformerPolicy(model, cache=False), batch)
    np.testing.assert_allclose(cached[0], recomputed[0], rtol=0, atol=1e-12)
    np.testing.assert_array_equal(cached[1], recomputed[1])
    action_set, action, reward = (torch.from_numpy(x) for x in (batch.action_set, cached[1], cached[2]))
    forced = model(action_set, action, reward).softmax(-1).detach().numpy()
    np.testing.assert_allclose(cached[0], forced, rtol=0, atol=1e-12)
    assert np.ptp(cached[0], axis=(0, 1)).max() > 0.05


def test_reset_starts_over_for_any_number_of_environments():
    policy, fresh = TransformerPolicy(build()), TransformerPolicy(build())
    rollout(policy, environments(5), seed=1)
    for n in (5, 3, 8):
        for a, b in zip(rollout(policy, environments(n, 20)), rollout(fresh, environments(n, 20)), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("tokens", ["paper", "onehot", "merged"])
def test_interactions_that_start_apart_equal_each_alone(tokens, cache):
    """A server's way: some end and others take their place while the rest go on."""
    model = build(tokens).double()
    policy, fresh = TransformerPolicy(model, cache=cache), itertools.count(100)
    policy.reset(environments(5))
    alone = []
    for b in range(5):
        alone.append(TransformerPolicy(model, cache=False))
        alone[b].reset(environments(1, b))
    ages, rng = np.zeros(5, np.int64), np.random.default_rng(3)
    for step in range(20):
        ending = np.flatnonzero((ages == CONFIG.horizon) | (rng.random(5) < (0 if step < 3 else 0.2)))
        if len(ending):
            new = [next(fresh) for _ in ending]
            policy.restart(ending, sample(CONFIG, 9, Split.EVAL, np.array(new)))
            for b, index in zip(ending, new, strict=True):
                alone[b].reset(environments(1, index))
            ages[ending] = 0
        expected = np.concatenate([one.probabilities() for one in alone])
        np.testing.assert_allclose(policy.probabilities(), expected, rtol=0, atol=1e-12)
        action, reward = rng.integers(0, 4, 5), rng.standard_normal(5).astype(np.float32)
        policy.update(action, reward)
        for b in range(5):
            alone[b].update(action[b : b + 1], reward[b : b + 1])
        ages += 1
    policy.reset(environments(5))  # in step again
    whole = TransformerPolicy(model, cache=False)
    whole.reset(environments(5))
    np.testing.assert_allclose(policy.probabilities(), whole.probabilities(), rtol=0, atol=1e-12)


def test_an_environment_does_not_see_its_neighbours():
    model = build().double()
    together, alone = TransformerPolicy(model), TransformerPolicy(model)
    together.reset(environments(4))
    alone.reset(environments(1, 2))
    for t in range(3):
        np.testing.assert_allclose(together.probabilities()[2:3], alone.probabilities(), rtol=0, atol=1e-12)
        action = np.array([0, 1, (t + 1) % 4, 3])
        together.update(action, np.array([9, -9, 0.5, 3], np.float32))
        alone.update(action[2:3], np.array([0.5], np.float32))


def test_actions_are_drawn_from_the_probabilities():
    policy = TransformerPolicy(build())
    policy.reset(sample(CONFIG, 9, Split.EVAL, np.zeros(4000, np.int64)))
    probabilities = policy.probabilities()
    uniform = ((np.arange(4000) + 0.5) / 4000).astype(np.float32)
    counts = np.bincount(policy.act(FixedDraws(uniform)), minlength=4)
    np.testing.assert_allclose(counts / 4000, probabilities[0], atol=1e-3)
    greedy = TransformerPolicy(build(), "greedy")
    greedy.reset(environments())
    draws = FixedDraws(np.full(7, 0.999, np.float32))
    np.testing.assert_array_equal(greedy.act(draws), greedy.probabilities().argmax(1))


def test_probabilities_do_not_advance_the_history():
    policy = TransformerPolicy(build("paper"))
    policy.reset(environments())
    for _ in range(3):
        policy.update(np.zeros(7, np.int64), np.ones(7, np.float32))  # as when it follows another algorithm
    first = policy.probabilities()
    assert first.dtype == np.float64
    assert first.shape == (7, 4)
    np.testing.assert_allclose(first.sum(1), 1, atol=1e-12)
    np.testing.assert_array_equal(first, policy.probabilities())


def test_refusals():
    policy = TransformerPolicy(build())
    with pytest.raises(ValueError, match=r"5 actions in dimension 3.*expects 4 actions in dimension 2"):
        policy.reset(sample(LinearBanditConfig(dim=3, n_actions=5), 0, Split.EVAL, np.arange(2)))
    policy.reset(environments())
    with pytest.raises(ValueError, match=r"which of shape \(1,\): expected 2 different interactions"):
        policy.restart(np.array([3]), environments(2))
    with pytest.raises(ValueError, match=r"which in 3..7: expected interactions 0..6"):
        policy.restart(np.array([3, 7]), environments(2))
    policy.probabilities()
    with pytest.raises(ValueError, match=r"restart in the middle of a round: expected after update"):
        policy.restart(np.array([3]), environments(1))
    rollout(policy, environments())
    with pytest.raises(ValueError, match=r"round 7.*made for 6 rounds"):
        policy.probabilities()
