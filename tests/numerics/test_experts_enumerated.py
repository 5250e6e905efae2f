"""Reduced experts, ratios and divergences against sums over every trajectory of a tiny Bernoulli bandit."""

import numpy as np
import pytest

from icrl import algorithms, envs, ratio, rollout
from icrl.config import (
    BernoulliBanditConfig,
    Config,
    ContextComponent,
    DatasetConfig,
    ExpertConfig,
    LinUCBConfig,
    TrainConfig,
    UniformConfig,
)
from icrl.experts import (
    TrajectoryMixture,
    approximate,
    label_divergence,
    posterior_sampling,
    reduced_expert,
)
from icrl.ratio import estimate, log_lower_bound, log_weights
from icrl.rollout.replay import History, history, played, replay
from icrl.streams import Split
from tests.enumeration import every_trajectory, evidence_of, first_is_best

T = 3
ENVIRONMENT = BernoulliBanditConfig(n_actions=2, horizon=T)
EVERY = every_trajectory(2, T)
SOFT = LinUCBConfig(temperature=0.4, confidence=1.0)
"""Not uniform, and stochastic: it may play anything."""


def past():
    n = len(EVERY.action)
    batch = envs.sample(ENVIRONMENT, 0, Split.TEST, np.arange(n))  # seen by no algorithm here
    return History(batch, EVERY.action, EVERY.reward)


def played_by(algorithm):
    """float64[n, T]: the probability of each action of every trajectory."""
    return played(replay(algorithm, past()), EVERY.action)


def config(*context, label="optimal", estimator=None, seed=3):
    return Config(
        environment=ENVIRONMENT,
        context=tuple(ContextComponent(algorithm, weight) for algorithm, weight in context),
        expert=ExpertConfig(label, estimator),
        dataset=DatasetConfig(seed=seed),
        train=TrainConfig(),
    )


def prefixes(t):
    """The rounds before t of every trajectory."""
    return [rounds[:t] for rounds in EVERY.rounds]


def test_the_oracle_is_a_distribution():
    uniform = 0.5**T
    assert (EVERY.evidence * uniform).sum() == pytest.approx(1, rel=1e-14)
    assert evidence_of((), 2) == 1
    assert first_is_best(()) == first_is_best(((0, 1), (1, 1))) == 0.5
    assert first_is_best(((0, 1),)) == pytest.approx(2 / 3)


def test_posterior_sampling_is_the_posterior_of_the_best_action():
    p = replay(posterior_sampling(ENVIRONMENT).algorithm, past())
    want = np.array([[float(first_is_best(prefix)) for prefix in prefixes(t)] for t in range(T)]).T
    np.testing.assert_allclose(p[..., 0], want, rtol=1e-13)
    np.testing.assert_allclose(p.sum(axis=-1), 1, rtol=1e-14)


def test_reduced_expert_of_a_mixture_is_the_conditional_of_its_law():
    """P(a_t | D_{t-1}) = P(D_{t-1}, a_t) / P(D_{t-1}), each a sum over components and over what follows."""
    weights = {"uniform": 0.3, "soft": 0.7}
    alone = {"uniform": np.full((len(EVERY.action), T), 0.5), "soft": played_by(algorithms.build(SOFT, ENVIRONMENT))}
    law = EVERY.evidence * sum(weights[c] * alone[c].prod(axis=1) for c in weights)
    assert law.sum() == pytest.approx(1, rel=1e-13)
    found = reduced_expert(config((UniformConfig(), 3.0), (SOFT, 7.0), label="distillation"))
    p = replay(found.algorithm, past())
    for t in range(T):
        before = prefixes(t)
        for i, prefix in enumerate(before):
            same = np.array([other == prefix for other in before])
            for a in range(2):
                want = law[same & (EVERY.action[:, t] == a)].sum() / law[same].sum()
                assert p[i, t, a] == pytest.approx(want, rel=1e-12)


def test_reduced_expert_of_one_component_is_the_component():
    found = reduced_expert(config((SOFT, 2.0), (UniformConfig(), 0.0), label="distillation"))
    np.testing.assert_array_equal(replay(found.algorithm, past()), replay(algorithms.build(SOFT, ENVIRONMENT), past()))


def exact_ratio(expert, context):
    """sum_D P_expert(D)^2 / P_context(D) from probabilities of whole trajectories' actions, float64[n] each."""
    return float((EVERY.evidence * expert**2 / context).sum())


def weighed(weights, context):
    """The expectation of w^2 under the context, with the weights of the module under test."""
    return float((EVERY.evidence * context * np.exp(2 * weights.values)).sum())


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_ratio_of_posterior_sampling_to_a_mixture_with_it(share):
    """Experiment 4's family: a share of posterior sampling, the rest uniform; the ratio is at most 1 / share."""
    sampling = posterior_sampling(ENVIRONMENT).algorithm
    mixture = TrajectoryMixture(
        [posterior_sampling(ENVIRONMENT).algorithm, algorithms.build(UniformConfig(), ENVIRONMENT)],
        [share, 1 - share],
    )
    first = np.array([[float(first_is_best(prefix)) for prefix in prefixes(t)] for t in range(T)]).T
    expert = np.where(EVERY.action == 0, first, 1 - first).prod(axis=1)
    context = share * expert + (1 - share) * 0.5**T
    want = exact_ratio(expert, context)
    weights = log_weights(sampling, mixture, past())
    assert weights.impossible == 0
    assert not weights.uncovered
    assert weighed(weights, context) == pytest.approx(want, rel=1e-12)
    assert want <= 1 / max(share, 1e-9)
    if share == 1:
        assert want == pytest.approx(1, rel=1e-13)
    else:
        assert want > 1.001


def simulated(count, *context, seed=3):
    experiment = config(*context, seed=seed)
    batch = rollout.generate(ENVIRONMENT, experiment.context, seed, Split.TRAIN, np.arange(count))
    return experiment, {"index": batch.index, **batch.arrays()}


def test_the_estimate_of_a_ratio_against_its_exact_value():
    """R of posterior sampling to soft LinUCB and uniform play, from trajectories that were generated."""
    count = 40_000
    _, rows = simulated(count, (SOFT, 1.0), (UniformConfig(), 1.0))
    alone = played_by(algorithms.build(SOFT, ENVIRONMENT)).prod(axis=1)
    expert = played_by(posterior_sampling(ENVIRONMENT).algorithm).prod(axis=1)
    want = exact_ratio(expert, 0.5 * alone + 0.5 * 0.5**T)
    weights = log_weights(
        posterior_sampling(ENVIRONMENT).algorithm,
        reduced_expert(config((SOFT, 1.0), (UniformConfig(), 1.0), label="distillation")).algorithm,
        history(ENVIRONMENT, 3, Split.TRAIN, rows),
    )
    found = estimate(weights)
    assert found.trajectories == count
    assert abs(found.value - want) < 4.5 * found.standard_error
    assert found.standard_error < 0.01
    assert abs(found.mean_weight - 1) < 0.02
    # (sum w)^2 / sum w^2 tends to n / R
    assert found.effective_sample_size == pytest.approx(count / want, rel=0.03)
    assert not found.lower_bound


def test_the_lower_bound_is_the_divergence_of_the_laws():
    expert = played_by(posterior_sampling(ENVIRONMENT).algorithm).prod(axis=1)
    want = float((EVERY.evidence * expert * np.log(expert / 0.5**T)).sum())
    uniform = algorithms.build(UniformConfig(), ENVIRONMENT)
    sampling = posterior_sampling(ENVIRONMENT).algorithm
    mean, error = log_lower_bound(sampling, uniform, ENVIRONMENT, 1, 20_000)
    assert abs(mean - want) < 4.5 * error
    assert error < 0.01
    assert want < np.log(exact_ratio(expert, np.full(len(expert), 0.5**T)))
    hard = algorithms.build(LinUCBConfig(), ENVIRONMENT)
    assert log_lower_bound(sampling, hard, ENVIRONMENT, 1, 50)[0] == np.inf


@pytest.mark.parametrize("algorithm", [SOFT, UniformConfig(), LinUCBConfig()], ids=["soft", "uniform", "hard"])
def test_the_ratio_of_an_algorithm_to_itself_is_one(algorithm):
    _, rows = simulated(200, (algorithm, 1.0))
    one, other = algorithms.build(algorithm, ENVIRONMENT), algorithms.build(algorithm, ENVIRONMENT)
    found = estimate(log_weights(one, other, history(ENVIRONMENT, 3, Split.TRAIN, rows)))
    assert (found.value, found.standard_error, found.mean_weight) == (1, 0, 1)
    assert found.effective_sample_size == pytest.approx(200)


def test_a_deterministic_context_does_not_cover_posterior_sampling():
    _, rows = simulated(50, (LinUCBConfig(), 1.0))
    hard = algorithms.build(LinUCBConfig(), ENVIRONMENT)
    weights = log_weights(posterior_sampling(ENVIRONMENT).algorithm, hard, history(ENVIRONMENT, 3, Split.TRAIN, rows))
    assert weights.uncovered
    assert estimate(weights).value == np.inf
    assert "infinite" in ratio.describe(weights)
    # the other way round the expert is covered, and its trajectories have few ways to be
    back = log_weights(hard, algorithms.build(UniformConfig(), ENVIRONMENT), past())
    assert not back.uncovered
    assert weighed(back, np.full(len(EVERY.action), 0.5**T)) == pytest.approx(2**T)


@pytest.mark.parametrize("estimator", ["empirical_mean", "posterior_mean"])
def test_the_divergence_of_an_approximate_label_against_its_exact_value(estimator):
    experiment = config((UniformConfig(), 1.0), label="approximate", estimator=estimator)
    rows = {"index": np.arange(len(EVERY.action)), "action": EVERY.action, "reward": EVERY.reward}
    label = approximate(experiment, rows, Split.TRAIN)
    first = np.array([float(first_is_best(rounds)) for rounds in EVERY.rounds])
    nats = -np.log(np.where(label == 0, first, 1 - first))
    want = float((EVERY.evidence * 0.5**T * nats).sum())
    _, drawn = simulated(20_000, (UniformConfig(), 1.0))
    found = label_divergence(experiment, drawn, Split.TRAIN)
    assert found.trajectories == 20_000
    assert 0 < found.standard_error < 0.01
    assert abs(found.mean - want) < 4.5 * found.standard_error


def test_the_law_of_a_posterior_sample_is_posterior_sampling():
    """Its frequencies for each D_3, from two million labels, against the exact posterior."""
    experiment = config((UniformConfig(), 1.0), label="approximate", estimator="posterior_sample")
    repeats = 2**15
    n = len(EVERY.action)
    rows = {
        "index": np.arange(n * repeats),
        "action": np.repeat(EVERY.action, repeats, axis=0),
        "reward": np.repeat(EVERY.reward, repeats, axis=0),
    }
    label = approximate(experiment, rows, Split.TRAIN).reshape(n, repeats)
    p = np.array([float(first_is_best(rounds)) for rounds in EVERY.rounds])
    error = np.sqrt(p * (1 - p) / repeats)
    z = ((label == 0).mean(axis=1) - p) / error
    assert np.abs(z).max() < 4.5
    assert np.square(z).sum() < n + 5 * np.sqrt(2 * n)
    found = label_divergence(experiment, {name: values[:10] for name, values in rows.items()}, Split.TRAIN)
    assert found.mean == 0
