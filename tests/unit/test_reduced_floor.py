"""What sampling of the reduced expert alone adds to its distance from a model."""

import numpy as np
import pytest

from eval import reduced
from icrl import algorithms
from icrl.config import (
    BernoulliBanditConfig,
    Config,
    ContextComponent,
    ExpertConfig,
    LinearBanditConfig,
    PSRLConfig,
    TabularMDPConfig,
    ThompsonConfig,
    UniformConfig,
)
from icrl.experts import hellinger, kl, reduced_expert, smoothed
from icrl.rollout.loop import play
from icrl.rollout.replay import history, replay
from icrl.streams import Split

INDEX = np.arange(8)


def rows_of(config):
    algorithm = config.context[0].algorithm
    played = play(config.environment, algorithms.build(algorithm, config.environment), 0, Split.TEST, INDEX)
    rows = {"index": INDEX, "action": played.action, "reward": played.reward}
    return rows | ({"state": played.state} if played.state is not None else {})


def config(environment, *context, label="optimal"):
    components = tuple(ContextComponent(algorithm, 1.0) for algorithm in context)
    return Config(environment=environment, context=components, expert=ExpertConfig(label))


@pytest.mark.parametrize("prior", ["gaussian", "unit_box"])
def test_it_is_about_the_distance_that_a_perfect_model_would_show(prior):
    """Perfect: the same posterior from thirty-two times as many samples."""
    experiment = config(LinearBanditConfig(dim=3, n_actions=6, horizon=15, prior=prior), ThompsonConfig())
    rows = rows_of(experiment)
    expert = reduced_expert(experiment).algorithm
    expert.samples *= 32
    assert expert.resample()
    expert.resample()  # neither of the two sets that the floor is made of
    truth = smoothed(replay(expert, history(experiment.environment, 0, Split.TEST, rows)), expert)
    found = reduced.distance(experiment, rows, Split.TEST, truth)
    assert found.floor.hellinger == pytest.approx(found.hellinger.mean, rel=0.2)
    assert found.floor.kl == pytest.approx(found.kl.mean, rel=0.35)
    assert found.floor.hellinger > 0.01
    assert reduced.distance(experiment, rows, Split.TEST, truth) == found


def test_mixtures_and_mdps_have_one_and_exact_experts_none():
    linear = LinearBanditConfig(dim=2, n_actions=3, horizon=5)
    tabular = TabularMDPConfig(n_states=3, n_actions=2, episode_length=2, episodes=2)
    for experiment, sampled in (
        (config(linear, ThompsonConfig(), UniformConfig(), label="distillation"), True),
        (config(tabular, PSRLConfig(), label="distillation"), True),
        (config(linear, UniformConfig(), label="distillation"), False),
        (config(BernoulliBanditConfig(n_actions=3, horizon=5), UniformConfig()), False),
    ):
        rows = rows_of(experiment)
        A = experiment.environment.n_actions
        found = reduced.distance(experiment, rows, Split.TEST, np.full((8, rows["action"].shape[1], A), 1 / A))
        assert (found.floor is not None) == sampled
        if sampled:
            assert 0 < found.floor.hellinger < found.hellinger.mean + 0.2


def test_distances_of_two_distributions_with_noise():
    """The square of D_H and KL of two noisy copies is twice that of one and the truth."""
    rng = np.random.default_rng(0)
    truth = np.full(5, 0.2)
    p, q = (rng.multinomial(1000, truth, 4000) / 1000 for _ in range(2))
    assert (hellinger(p, q) ** 2).mean() == pytest.approx(2 * (hellinger(p, truth) ** 2).mean(), rel=0.05)
    assert kl(p, q).mean() == pytest.approx(2 * kl(p, truth[None]).mean(), rel=0.05)
