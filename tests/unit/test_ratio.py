"""The estimator of the distribution ratio on weights that are known, its bounds by hand, and its lines of text."""

import dataclasses
import math
import re

import numpy as np
import pytest

from data_gen.generate import generate
from icrl import algorithms, rollout
from icrl.config import (
    BernoulliBanditConfig,
    Config,
    ContextComponent,
    DatasetConfig,
    ExpertConfig,
    GaussianBanditConfig,
    GridWorldConfig,
    LinearBanditConfig,
    LinUCBConfig,
    MixtureComponent,
    MixtureConfig,
    OptimalConfig,
    TabularMDPConfig,
    ThompsonConfig,
    UniformConfig,
    override,
)
from icrl.experts import context_algorithm, posterior_sampling
from icrl.ratio import LogWeights, describe, estimate, known_ratio, log_upper_bound, log_weights, ratio_lines
from icrl.rollout.replay import history, replay
from icrl.store import SplitReader, dataset_path, dataset_recipe
from icrl.streams import Split

BERNOULLI = BernoulliBanditConfig(n_actions=3, horizon=6)
UNIFORM, THOMPSON = UniformConfig(), ThompsonConfig()


def config(environment, *context, **dataset):
    components = tuple(ContextComponent(algorithm, weight) for algorithm, weight in context)
    return Config(environment=environment, context=components, dataset=DatasetConfig(**dataset))


def weights(*values, uncovered=False, impossible=0):
    return LogWeights(np.array(values, np.float64), uncovered, impossible)


def test_the_estimate_of_known_weights():
    w = np.array([0.5, 2.0, 1.0, 0.25])
    found = estimate(weights(*np.log(w)))
    assert found.value == pytest.approx(np.mean(w**2))
    assert found.standard_error == pytest.approx(np.std(w**2, ddof=1) / 2)
    assert found.effective_sample_size == pytest.approx(w.sum() ** 2 / (w**2).sum())
    assert found.mean_weight == pytest.approx(w.mean())
    assert found.trajectories == 4


def test_weights_of_any_size_stay_finite():
    """Whatever is added to every ln w leaves the rest as it is; and twice it is added to ln R."""
    values = np.array([0.3, -2.0, 1.5, -np.inf, 0.0])
    base = estimate(weights(*values))
    for shift in (-5000.0, -300.0, 5000.0):
        found = estimate(weights(*(values + shift)))
        assert found.log == pytest.approx(base.log + 2 * shift)
        assert found.relative_error == pytest.approx(base.relative_error)
        assert found.effective_sample_size == pytest.approx(base.effective_sample_size)
    assert estimate(weights(5000.0)).value == math.inf
    assert estimate(weights(5000.0)).relative_error == math.inf
    nothing = estimate(weights(-np.inf, -np.inf))
    assert (nothing.value, nothing.effective_sample_size, nothing.mean_weight) == (0, 0, 0)
    assert nothing.lower_bound
    with pytest.raises(ValueError, match="nothing to estimate"):
        estimate(weights())


def test_few_effective_trajectories_make_a_lower_bound():
    even = estimate(weights(*np.zeros(100)))
    assert (even.value, even.effective_sample_size, even.lower_bound) == (1, 100, False)
    # a hundred trajectories that the expert would hardly have played, and one that it would
    rare = weights(*[-20.0] * 100, 4.0)
    assert estimate(rare).lower_bound
    assert "in practice a lower bound, as the mean weight 0.54 should be 1" in describe(rare)
    # none that it would: no ratio is below 1
    none = describe(weights(*[-20.0] * 100, 1.0), lower=(5.0, 0.1))
    assert none.startswith("not reached by these trajectories, as the mean weight 0.027 should be 1; effective sample")
    assert "at least 122 by" in none
    assert "infinite; the expert may play" in describe(weights(0.0, uncovered=True))
    assert "left out 3 that the context" in describe(weights(0.0, 0.0, impossible=3))
    assert describe(weights(impossible=2)).startswith("not estimated; left out 2 that")
    assert describe(weights(uncovered=True, impossible=2)).startswith("infinite; the expert may play")
    assert "10^26.1 (standard error" in describe(weights(30.0, 30.0, 30.0))
    assert "at most 2: half" in describe(weights(0.0, 0.0), upper=(math.log(2), "half"))
    assert "at least 7.39 by the divergence" in describe(weights(0.0, 0.0), lower=(2.2, 0.1))
    assert "at least infinity" in describe(weights(0.0, 0.0), lower=(math.inf, 0.0))


def test_upper_bounds_by_hand():
    half = MixtureConfig(components=(MixtureComponent(THOMPSON, 1.0), MixtureComponent(UNIFORM, 3.0)))
    noisy = ThompsonConfig(noise_variance=4.0)
    gaussian = GaussianBanditConfig(n_actions=3, horizon=6, noise_std=1.0, prior_std=2.0)
    linear = LinearBanditConfig(dim=2, n_actions=3, horizon=6, noise_std=1.0, prior="gaussian")
    box = LinearBanditConfig(dim=2, n_actions=3, horizon=6)
    for environment, context, want in (
        (BERNOULLI, [(THOMPSON, 1.0)], 0.0),
        (BERNOULLI, [(THOMPSON, 1.0), (UNIFORM, 3.0)], math.log(4)),
        (BERNOULLI, [(THOMPSON, 0.0), (UNIFORM, 3.0)], 6 * math.log(3)),
        (BERNOULLI, [(UNIFORM, 1.0), (LinUCBConfig(), 1.0)], math.log(2) + 6 * math.log(3)),
        (BERNOULLI, [(half, 1.0)], 6 * math.log(4)),  # uniform: 6 log(3 / 0.75) as well
        (BERNOULLI, [(LinUCBConfig(), 1.0)], None),
        (gaussian, [(ThompsonConfig(prior_variance=4.0), 1.0)], 0.0),
        (gaussian, [(ThompsonConfig(prior_variance=1.0), 1.0)], None),
        (linear, [(ThompsonConfig(noise_variance=1.0), 1.0)], 0.0),
        (linear, [(noisy, 1.0)], None),
        (box, [(THOMPSON, 1.0)], None),
    ):
        found = log_upper_bound(config(environment, *context))
        assert (found and found[0]) == pytest.approx(want)


@pytest.fixture
def lines(tmp_path):
    """`ratio_lines` of the test split of a dataset that is really written."""

    def made(environment, *context, limit=200):
        experiment = config(environment, *context, train=128, validation=8, test=200, actors=0)
        experiment = override(experiment, [f"storage.root={tmp_path}"])
        generate(experiment)
        reader = SplitReader(dataset_path(experiment), "test", dataset_recipe(experiment))
        return ratio_lines(experiment, reader, limit)

    return made


def test_lines_of_a_uniform_context(lines):
    first, second = lines(BERNOULLI, (UNIFORM, 1.0))
    assert first == "distillation: 1 (the expert is the context itself)"
    assert second.startswith("optimal (posterior sampling: Beta posterior, exact by quadrature): ")
    assert "of 200 trajectories; at most 729: a share of 1 of the trajectories is uniform" in second
    long = lines(BernoulliBanditConfig(n_actions=3, horizon=40), (UNIFORM, 1.0), limit=50)[1]
    assert "not reached by these trajectories" in long
    assert "of 50 trajectories" in long
    assert "at most 10^19.1: a share of 1" in long
    at_least = re.search(r"at least 10\^([0-9.]+) by the divergence", long)
    assert at_least is not None
    assert 6 < float(at_least[1]) < 19


def test_lines_of_other_contexts(lines):
    assert ": infinite; the expert may play what the context never does" in lines(BERNOULLI, (LinUCBConfig(), 1.0))[1]
    mixed = lines(BERNOULLI, (LinUCBConfig(), 1.0), (UNIFORM, 1.0))[1]
    assert "at most 1.46e+03: a share of 0.5 of the trajectories is uniform" in mixed
    box = LinearBanditConfig(dim=2, n_actions=3, horizon=6)
    assert "cut off at the box, 1024 importance samples): " in lines(box, (UNIFORM, 1.0))[1]


@pytest.mark.parametrize(
    "environment",
    [
        GaussianBanditConfig(n_actions=3, horizon=20),
        LinearBanditConfig(dim=2, n_actions=3, horizon=20, noise_std=1.0),
    ],
    ids=["gaussian", "linear"],
)
def test_monte_carlo_does_not_break_the_bound_of_a_mixture(environment):
    """A component that is the expert has the expert's probabilities, however they are computed: w <= 2."""
    if isinstance(environment, LinearBanditConfig):
        environment = dataclasses.replace(environment, prior="gaussian")
    experiment = config(environment, (THOMPSON, 1.0), (UNIFORM, 1.0))
    # histories of uniform play: seldom the expert's
    batch = rollout.generate(
        dataclasses.replace(environment, prior="unit_box") if hasattr(environment, "prior") else environment,
        config(environment, (UNIFORM, 1.0)).context,
        0,
        Split.TRAIN,
        np.arange(60),
    )
    past = history(environment, 0, Split.TRAIN, {"index": batch.index, **batch.arrays()})
    found = log_weights(posterior_sampling(environment).algorithm, context_algorithm(experiment), past)
    assert found.values.max() <= math.log(2) + 1e-9
    assert not found.uncovered
    assert found.impossible == 0


def test_lines_of_a_context_that_sees_the_environment(lines):
    assert lines(BERNOULLI, (OptimalConfig(), 1.0)) == [
        "distillation: not defined (the context sees the environment)",
        "optimal: not defined (the context sees the environment)",
    ]


def test_what_is_known_of_an_approximate_label():
    base = config(BERNOULLI, (THOMPSON, 1.0))
    estimate = dataclasses.replace(base, expert=ExpertConfig("approximate", "empirical_mean"))
    assert known_ratio(estimate).log_bound is None
    assert known_ratio(estimate, "optimal").log_bound == 0
    sample = dataclasses.replace(base, expert=ExpertConfig("approximate", "posterior_sample"))
    assert known_ratio(sample).log_bound == 0


def test_lines_of_mdps(lines):
    tabular = TabularMDPConfig(n_states=3, n_actions=2, episode_length=3, episodes=2)
    assert lines(tabular, (UNIFORM, 1.0))[1].startswith("optimal: not computed (the posterior of the best action of")
    room = GridWorldConfig(side=2, episode_length=3, episodes=2)
    assert "exact by enumeration): " in lines(room, (UNIFORM, 1.0))[1]


def test_what_the_context_would_not_have_played_is_left_out():
    experiment = config(BERNOULLI, (UNIFORM, 1.0))
    batch = rollout.generate(BERNOULLI, experiment.context, 0, Split.TRAIN, np.arange(3000))
    past = history(BERNOULLI, 0, Split.TRAIN, {"index": batch.index, **batch.arrays()})
    hard = algorithms.build(LinUCBConfig(), BERNOULLI)
    found = log_weights(posterior_sampling(BERNOULLI).algorithm, hard, past)
    by_chance = (replay(hard, past).argmax(axis=-1) == past.action).all(axis=1)
    assert 0 < by_chance.sum() < 30  # 3^-6 of them
    assert (found.values.size, found.impossible) == (by_chance.sum(), 3000 - by_chance.sum())
    assert np.isfinite(found.values).all()
