"""Beta-Bernoulli Thompson sampling in weights: the exact posterior probabilities at every round, from whole counts."""

import math

import numpy as np
import pytest
import torch

from icrl import envs
from icrl.algorithms import build
from icrl.config import BernoulliBanditConfig, LinearBanditConfig, ThompsonConfig
from icrl.constructions import beta_thompson
from icrl.policy import TransformerPolicy
from icrl.rollout import replay
from icrl.rollout.loop import play
from icrl.streams import Split


def errors(environment, n, *, dtype=torch.float64):
    """Largest |difference of p| and of log p along Thompson sampling's own plays."""
    index = np.arange(n)
    game = play(environment, build(ThompsonConfig(), environment), 5, Split.EVAL, index)
    rows = {"index": index, "action": game.action, "reward": game.reward}
    past = replay.history(environment, 5, Split.EVAL, rows)
    exact = replay.replay(build(ThompsonConfig(), environment), past)
    actions = envs.action_sets(environment, 5, Split.EVAL, index)
    with torch.inference_mode():
        model = beta_thompson(environment, dtype=dtype)
        logits = model(*(torch.from_numpy(x) for x in (actions, game.action, game.reward)))
    found = logits.double().log_softmax(-1).numpy()
    assert np.ptp(exact) > 0.3
    return np.abs(np.exp(found) - exact).max(), np.abs(found - np.log(exact)).max()


@pytest.mark.parametrize(("A", "T"), [(2, 12), (3, 7), (5, 4)])
def test_probabilities_are_the_algorithm_s(A, T):
    environment = BernoulliBanditConfig(n_actions=A, horizon=T)
    assert max(errors(environment, 60)) < 1e-9
    assert max(errors(environment, 60, dtype=torch.float32)) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(("A", "T"), [(2, 33), (3, 16), (4, 11)])
def test_probabilities_of_the_largest_tables(A, T):
    environment = BernoulliBanditConfig(n_actions=A, horizon=T)
    assert max(errors(environment, 20)) < 1e-9
    with pytest.raises(ValueError, match=f"T <= {T} has room"):
        beta_thompson(BernoulliBanditConfig(n_actions=A, horizon=T + 1))


def test_it_plays_as_the_algorithm_does():
    environment = BernoulliBanditConfig(n_actions=2, horizon=10)
    model = beta_thompson(environment)
    n, regret = 300, []
    for policy in (TransformerPolicy(model), build(ThompsonConfig(), environment)):
        regret.append(play(environment, policy, 5, Split.EVAL, np.arange(n)).suboptimality.sum(1))
    difference = regret[0] - regret[1]
    assert abs(difference.mean()) <= 2 * difference.std(ddof=1) / np.sqrt(n)


def test_sizes():
    report = beta_thompson(BernoulliBanditConfig(n_actions=3, horizon=5)).report
    assert (report.layers, report.heads, report.mlp_dim) == (2, 3, math.comb(10, 6))


def test_what_it_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"horizon = 200: .* tallies of 5 actions, expected at most 65536; T <= 9"):
        beta_thompson(BernoulliBanditConfig())
    with pytest.raises(ValueError, match="expected bernoulli_bandit"):
        beta_thompson(LinearBanditConfig())
    with pytest.raises(ValueError, match="expected float64 or float32"):
        beta_thompson(BernoulliBanditConfig(n_actions=2, horizon=3), dtype=torch.float16)
    for field in ("n_actions", "horizon"):
        with pytest.raises(ValueError, match=f"{field} = 0"):
            BernoulliBanditConfig(**{field: 0})
