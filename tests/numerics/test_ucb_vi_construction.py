"""Soft UCB-VI in weights is the algorithm: log-probabilities at every state token, and the games it plays."""

import numpy as np
import pytest
import torch

from icrl.algorithms import build
from icrl.config import GridWorldConfig, LinearBanditConfig, TabularMDPConfig, UCBVIConfig
from icrl.constructions import ucb_vi
from icrl.constructions.soft_ucb_vi import max_layers
from icrl.model import Transformer
from icrl.policy import TransformerPolicy
from icrl.rollout import replay
from icrl.rollout.loop import play
from icrl.streams import Split


def mdp(S, A, H, K, **options):
    options = {"reward_noise": "none", "start": "random"} | options
    return TabularMDPConfig(n_states=S, n_actions=A, episode_length=H, episodes=K, **options)


def played(environment, algorithm, n):
    """Trajectories of the algorithm, as tensors, and its log-probabilities along them."""
    index = np.arange(n)
    game = play(environment, build(algorithm, environment), 5, Split.EVAL, index)
    rows = {"index": index, "action": game.action, "reward": game.reward, "state": game.state}
    past = replay.history(environment, 5, Split.EVAL, rows)
    exact = np.stack(list(replay.rounds(build(algorithm, environment), past)), axis=1)
    tensors = (torch.from_numpy(past.state), torch.from_numpy(past.action), torch.from_numpy(past.reward))
    return tensors, np.log(exact)


def error(model, tensors, exact):
    with torch.inference_mode():
        return np.abs(model(*tensors).double().log_softmax(-1).numpy() - exact).max()


CASES = {
    "A=2": (mdp(3, 2, 2, 8), 12),
    "A=3": (mdp(3, 3, 3, 20), 14),
    "A=4, rewards 0 and 1": (mdp(2, 4, 2, 12, reward_noise="bernoulli"), 12),
    "A=5 takes a second layer for the maximum": (mdp(2, 5, 2, 6), 14),
    "A=9 too": (mdp(2, 9, 1, 5), 11),
    "each step its own transitions": (mdp(2, 2, 3, 8, stationary=False, start="fixed"), 14),
    "one episode of one step": (mdp(1, 2, 1, 1), 10),
    "Dark Room": (GridWorldConfig(side=2, episode_length=3, episodes=6), 17),
}


@pytest.mark.parametrize("name", CASES)
def test_log_probabilities_are_the_algorithm_s(name):
    environment, layers = CASES[name]
    algorithm = UCBVIConfig(bonus=0.02, temperature=1 / environment.episodes)
    tensors, exact = played(environment, algorithm, 4)
    assert np.ptp(exact) > 0.1 or environment.horizon == 1
    assert error(ucb_vi(environment, algorithm), tensors, exact) < 1e-9
    single = ucb_vi(environment, algorithm, torch.float32)
    assert error(single, tensors, exact) < 1e-3
    assert len(single.blocks) == layers
    if environment.n_actions <= 4:
        assert layers == 2 * environment.episode_length + 8


def test_a_pair_without_visits_may_be_worth_the_ceiling():
    environment = mdp(2, 2, 3, 6)
    algorithm = UCBVIConfig(bonus=0.01, temperature=0.1, unvisited="ceiling")
    tensors, exact = played(environment, algorithm, 4)
    assert error(ucb_vi(environment, algorithm), tensors, exact) < 1e-9
    formula = UCBVIConfig(bonus=0.01, temperature=0.1)
    assert error(ucb_vi(environment, formula), tensors, exact) > 1e-2


def test_it_plays_the_same_games():
    environment = mdp(3, 3, 2, 6)
    algorithm = UCBVIConfig(bonus=0.02, temperature=0.2)
    index = np.arange(60)
    own = play(environment, TransformerPolicy(ucb_vi(environment, algorithm)), 1, Split.EVAL, index)
    exact = play(environment, build(algorithm, environment), 1, Split.EVAL, index)
    np.testing.assert_array_equal(own.action, exact.action)
    np.testing.assert_array_equal(own.suboptimality, exact.suboptimality)


def test_the_dense_form_is_the_same_function():
    environment = mdp(2, 2, 1, 3)
    algorithm = UCBVIConfig(bonus=0.02, temperature=0.5)
    tensors, exact = played(environment, algorithm, 3)
    model = ucb_vi(environment, algorithm)
    dense = Transformer(model.config, environment, blocks=[block.dense() for block in model.blocks])
    assert error(dense, tensors, exact) < 1e-9
    np.testing.assert_allclose(dense.operator_norm(), model.operator_norm(), rtol=1e-9)


@pytest.mark.parametrize(("n_actions", "layers"), [(2, 1), (4, 1), (5, 2), (16, 2), (17, 3)])
def test_layers_of_the_maximum(n_actions, layers):
    assert max_layers(n_actions) == layers


def test_what_it_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"environment\.kind = linear_bandit: expected tabular_mdp or grid_world"):
        ucb_vi(LinearBanditConfig(), UCBVIConfig(temperature=1.0))
    with pytest.raises(ValueError, match="temperature = 0: expected above 0"):
        ucb_vi(mdp(2, 2, 2, 2), UCBVIConfig())
    long = mdp(2, 2, 2, 60)
    with pytest.raises(ValueError, match=r"= 300 tokens: expected at most 256 in torch.float32"):
        ucb_vi(long, UCBVIConfig(temperature=1.0), torch.float32)
    with pytest.raises(ValueError, match="expected float64 or float32"):
        ucb_vi(mdp(2, 2, 2, 2), UCBVIConfig(temperature=1.0), torch.bfloat16)
