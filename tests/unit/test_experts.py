"""Labels and reduced experts by hand, by quadrature on a grid, and by what they must be functions of."""

import dataclasses

import numpy as np
import pytest
from scipy.stats import norm

from icrl import algorithms, envs, rollout
from icrl.config import (
    BernoulliBanditConfig,
    Config,
    ConfigError,
    ContextComponent,
    DatasetConfig,
    ExpertConfig,
    GaussianBanditConfig,
    GridWorldConfig,
    LinearBanditConfig,
    LinUCBConfig,
    OptimalConfig,
    TabularMDPConfig,
    ThompsonConfig,
    UCBVIConfig,
    UniformConfig,
)
from icrl.experts import (
    approximate,
    best_action,
    hellinger,
    kl,
    label_divergence,
    labels,
    posterior_sampling,
    reduced_expert,
)
from icrl.experts.posterior import BOX_PROPOSAL_VARIANCE, linear_best, linear_posterior
from icrl.rollout.replay import History, history, replay
from icrl.streams import Split

BERNOULLI = BernoulliBanditConfig(n_actions=4, horizon=12)
GAUSSIAN = GaussianBanditConfig(n_actions=4, horizon=12, noise_std=0.7, prior_std=1.3)
LINEAR = LinearBanditConfig(dim=3, n_actions=4, horizon=12, noise_std=0.5)
PLAIN = (ContextComponent(UniformConfig()),)
ESTIMATORS = ("empirical_mean", "posterior_mean", "posterior_sample")


def config(environment, *, label="approximate", estimator=None, context=PLAIN):
    expert = ExpertConfig(label, estimator)
    return Config(environment=environment, context=context, expert=expert, dataset=DatasetConfig(seed=5))


def rows_of(experiment, count, split=Split.TRAIN, first=0):
    indices = np.arange(first, first + count)
    batch = rollout.generate(experiment.environment, experiment.context, experiment.dataset.seed, split, indices)
    return {"index": batch.index} | batch.arrays()


def test_distillation_and_optimal_are_views_of_one_dataset():
    rows = {
        "action": np.array([[0, 2, 1], [1, 1, 0]], np.uint8),
        "optimal_action": np.array([2, 0], np.uint8),
        "index": np.arange(2),
    }
    own = labels(config(BERNOULLI, label="distillation"), rows, Split.TRAIN)
    assert own.dtype == np.int64
    assert own.tolist() == rows["action"].tolist()
    optimal = config(BERNOULLI, label="optimal")
    assert labels(optimal, rows, Split.TRAIN).tolist() == [[2, 2, 2], [0, 0, 0]]
    changing = rows | {"optimal_action": np.array([[3, 0, 1], [1, 1, 2]], np.uint8)}
    assert labels(optimal, changing, Split.TRAIN).tolist() == [[3, 0, 1], [1, 1, 2]]


def test_optimal_labels_of_an_mdp_are_those_of_its_states():
    environment = TabularMDPConfig(n_states=3, n_actions=2, episode_length=4, episodes=2)
    experiment = config(environment, label="optimal")
    rows = rows_of(experiment, 20)
    got = labels(experiment, rows, Split.TRAIN)
    step = np.arange(8) % 4
    np.testing.assert_array_equal(got, rows["optimal_policy"][np.arange(20)[:, None], step, rows["state"]])


def test_estimators_by_hand():
    rows = {
        "index": np.arange(3),
        "action": np.array([[1, 1, 2, 2, 2, 0], [3, 3, 3, 3, 3, 3], [0, 1, 2, 3, 0, 0]], np.uint8),
        "reward": np.array([[1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 1, 1]], np.float32),
    }
    # means: -/1/1/- with ties to the lowest; only action 3 was played; 1, 1, 0, 0
    got = labels(config(BERNOULLI, estimator="empirical_mean"), rows, Split.TRAIN)
    assert got.tolist() == [[1] * 6, [3] * 6, [0] * 6]
    assert approximate(config(BERNOULLI), rows, Split.TRAIN).tolist() == [1, 3, 0]
    # (1 + s) / (2 + n): 1/3 3/4 4/5 1/2; 1/2 1/2 1/2 1/8; 4/5 2/3 1/3 1/3
    got = approximate(config(BERNOULLI, estimator="posterior_mean"), rows, Split.TRAIN)
    assert got.tolist() == [2, 0, 0]


def test_posterior_mean_of_gaussian_arms_shrinks_to_the_prior():
    rows = {"index": np.arange(1), "action": np.array([[0, 1, 1, 1]]), "reward": np.float32([[2.0, 1.9, 1.9, 1.9]])}
    narrow = dataclasses.replace(GAUSSIAN, noise_std=2.0, prior_std=0.5)
    # 2 / (1 + 16) against 5.7 / (3 + 16)
    assert approximate(config(narrow, estimator="posterior_mean"), rows, Split.TRAIN).tolist() == [1]
    assert approximate(config(narrow, estimator="empirical_mean"), rows, Split.TRAIN).tolist() == [0]


@pytest.mark.parametrize("prior", ["unit_box", "gaussian", "sphere"])
def test_linear_posterior_against_conditioning_of_the_joint_gaussian(prior):
    """E[w | y] = m + C X' (X C X' + r I)^-1 (y - X m), with numpy.linalg on the joint covariance."""
    environment = dataclasses.replace(LINEAR, prior=prior)
    rng = np.random.default_rng(0)
    features = rng.uniform(-1, 1, (5, 4, 3)).astype(np.float32)
    action, reward = rng.integers(0, 4, (5, 12)), rng.normal(size=(5, 12)).astype(np.float32)
    posterior = linear_posterior(environment, features, action, reward)
    mean, variance = {"unit_box": (0.5, 1 / 12), "gaussian": (0, 1), "sphere": (0, 1 / 3)}[prior]
    for b in range(5):
        x = features[b, action[b]].astype(np.float64)
        gain = variance * x.T @ np.linalg.inv(variance * x @ x.T + 0.25 * np.eye(12))
        np.testing.assert_allclose(posterior.mean[b], mean + gain @ (reward[b] - mean * x.sum(axis=1)), atol=1e-12)
        root = posterior.root[b]
        np.testing.assert_allclose(root @ root.T, variance * (np.eye(3) - gain @ x), atol=1e-12)
    # the same actions given anew in every round
    again = linear_posterior(environment, np.repeat(features[:, None], 12, axis=1), action, reward)
    np.testing.assert_allclose(again.mean, posterior.mean, atol=1e-12)
    np.testing.assert_allclose(again.root @ again.root.swapaxes(1, 2), root_of(posterior), atol=1e-12)


def root_of(posterior):
    return posterior.root @ posterior.root.swapaxes(1, 2)


def test_labels_of_changing_actions_are_one_estimate_read_in_every_round():
    environment = dataclasses.replace(LINEAR, prior="gaussian", action_set="fresh")
    rng = np.random.default_rng(1)
    features = rng.uniform(-1, 1, (6, 12, 4, 3)).astype(np.float32)
    rows = {
        "index": np.arange(6),
        "action": rng.integers(0, 4, (6, 12)).astype(np.uint8),
        "reward": rng.normal(size=(6, 12)).astype(np.float32),
        "action_set": features,
    }
    got = labels(config(environment, estimator="posterior_mean"), rows, Split.TRAIN)
    w = linear_posterior(environment, features, rows["action"].astype(np.int64), rows["reward"]).mean
    assert got.shape == (6, 12)
    np.testing.assert_array_equal(got, np.einsum("btad,bd->bta", features, w).argmax(axis=2))


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("environment", [BERNOULLI, GAUSSIAN, LINEAR], ids=lambda e: e.kind)
def test_labels_are_functions_of_the_trajectory(environment, estimator):
    experiment = config(environment, estimator=estimator)
    rows = rows_of(experiment, 64)
    whole = labels(experiment, rows, Split.TRAIN)
    assert whole.shape == rows["action"].shape
    assert (whole == whole[:, :1]).all()
    assert len(np.unique(whole)) > 1
    order = np.random.default_rng(0).permutation(64)[:23]
    some = {name: values[order] for name, values in rows.items()}
    np.testing.assert_array_equal(labels(experiment, some, Split.TRAIN), whole[order])
    one = {name: values[5:6] for name, values in rows.items()}
    np.testing.assert_array_equal(labels(experiment, one, Split.TRAIN), whole[5:6])
    # neither the environment's secret nor who played decides
    blind = {name: rows[name] for name in ("index", "action", "reward")}
    np.testing.assert_array_equal(labels(experiment, blind, Split.TRAIN), whole)
    # what is drawn is drawn anew in another split or under another seed
    other = labels(experiment, blind | {"action_set": sets(experiment, rows)}, Split.VALIDATION)
    reseeded = dataclasses.replace(experiment, dataset=DatasetConfig(seed=6))
    drawn = estimator == "posterior_sample"
    assert (other != whole).any() == drawn
    again = labels(reseeded, blind | {"action_set": sets(experiment, rows)}, Split.TRAIN)
    assert (again != whole).any() == drawn


def sets(experiment, rows):
    return envs.sample(experiment.environment, experiment.dataset.seed, Split.TRAIN, rows["index"]).action_set


@pytest.mark.parametrize(
    "environment",
    [
        BERNOULLI,
        GAUSSIAN,
        dataclasses.replace(LINEAR, dim=2, horizon=6),
        dataclasses.replace(LINEAR, dim=2, horizon=6, noise_std=0.2, n_actions=8),
    ],
    ids=["bernoulli", "gaussian", "box", "box, little noise"],
)
def test_a_posterior_sample_and_the_truth_are_exchangeable(environment):
    """Given D_T the label and a* have the same law, so that any f(D_T, .) has the same mean at both."""
    count = 20_000
    experiment = config(environment, estimator="posterior_sample")
    rows = rows_of(experiment, count)
    sampled, true = approximate(experiment, rows, Split.TRAIN), rows["optimal_action"].astype(np.int64)
    assert (sampled != true).mean() > 0.05
    plays = np.zeros((count, environment.n_actions))
    rewards = plays.copy()
    np.add.at(plays, (np.arange(count)[:, None], rows["action"]), 1)
    np.add.at(rewards, (np.arange(count)[:, None], rows["action"]), rows["reward"])
    mean = rewards / np.maximum(plays, 1)
    rank = mean.argsort(axis=1).argsort(axis=1) == environment.n_actions - 1
    for f in (plays, mean, rank * 1.0, rewards, np.sqrt(plays) * mean):
        difference = f[np.arange(count), sampled] - f[np.arange(count), true]
        assert abs(difference.mean()) < 4.5 * difference.std() / np.sqrt(count)


def test_a_sample_under_the_box_is_that_of_the_grid():
    """10^5 labels of one trajectory against a sum over a grid of the box; also the importance sampling."""
    environment = dataclasses.replace(LINEAR, dim=2, n_actions=5, horizon=8, noise_std=0.6)
    experiment = config(environment, estimator="posterior_sample")
    rows = rows_of(experiment, 6)
    features = sets(experiment, rows).astype(np.float64)
    axis = (np.arange(1200) + 0.5) / 1200
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    repeats = 100_000
    found = best_action(environment, history(environment, 5, Split.TRAIN, rows))
    for b in range(6):
        x = features[b, rows["action"][b]]
        log = -((rows["reward"][b] - grid @ x.T) ** 2).sum(axis=1) / (2 * 0.36)
        weight = np.exp(log - log.max())
        best = (grid @ features[b].T).argmax(axis=1)
        p = np.bincount(best, weights=weight, minlength=5) / weight.sum()
        many = {name: np.repeat(rows[name][b : b + 1], repeats, axis=0) for name in ("action", "reward")}
        many |= {"index": np.arange(repeats), "action_set": np.repeat(features[b : b + 1], repeats, axis=0)}
        frequency = np.bincount(approximate(experiment, many, Split.TRAIN), minlength=5) / repeats
        assert np.all(np.abs(frequency - p) < 4.5 * np.sqrt(p * (1 - p) / repeats) + 1e-4)
        np.testing.assert_array_less(np.abs(found.probabilities[b] - p), 4.5 * found.standard_error[b] + 1e-3)
        assert found.standard_error[b].max() < 0.03
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1, rtol=1e-12)


def test_importance_sampling_says_when_it_found_nothing():
    environment = dataclasses.replace(LINEAR, dim=2, n_actions=3, horizon=40, noise_std=0.01)
    features = np.array([[[1, 0], [0, 1], [0.5, 0.5]]], np.float32)
    action, reward = np.tile([0, 1], 20)[None], np.full((1, 40), -5, np.float32)  # far outside of the box
    posterior = linear_posterior(environment, features, action, reward, (0.5, BOX_PROPOSAL_VARIANCE))
    found = linear_best(posterior, features.astype(np.float64), 0, box=True, samples=64)
    np.testing.assert_array_equal(found.standard_error, 1)
    np.testing.assert_allclose(found.probabilities, 1 / 3)


def test_best_of_two_linear_actions_in_closed_form():
    environment = dataclasses.replace(LINEAR, prior="gaussian", n_actions=2)
    batch = envs.sample(dataclasses.replace(environment, prior="unit_box"), 0, Split.TEST, np.arange(30))
    rng = np.random.default_rng(2)
    action, reward = rng.integers(0, 2, (30, 12)), rng.normal(size=(30, 12)).astype(np.float32)
    found = best_action(environment, History(batch, action, reward))
    posterior = linear_posterior(environment, batch.action_set, action, reward)
    for b in range(30):
        gap = (batch.action_set[b, 0] - batch.action_set[b, 1]).astype(np.float64)
        exact = norm.cdf(gap @ posterior.mean[b] / np.linalg.norm(gap @ posterior.root[b]))
        assert abs(found.probabilities[b, 0] - exact) < 4.5 * np.sqrt(exact * (1 - exact) / 4096) + 3e-4


@pytest.mark.parametrize("environment", [BERNOULLI, GAUSSIAN, LINEAR], ids=lambda e: e.kind)
def test_posterior_sampling_is_calibrated(environment):
    """E[1{a* = k} - p_k | D_{t-1}] = 0, also weighted by a function of the history."""
    experiment = config(environment, label="optimal")
    rows = rows_of(experiment, 2000)
    found = reduced_expert(experiment)
    p = replay(found.algorithm, history(environment, 5, Split.TRAIN, rows))
    np.testing.assert_allclose(p.sum(axis=-1), 1, rtol=1e-12)
    for t in (0, 3, 11):
        hit = rows["optimal_action"][:, None] == np.arange(environment.n_actions)
        for weight in (1.0, p[:, t], np.eye(environment.n_actions)[rows["action"][:, 0]]):
            off = weight * (hit - p[:, t])
            error = off.std(axis=0) / np.sqrt(2000)
            assert np.all(np.abs(off.mean(axis=0)) < 4.5 * error + 2e-3)
    assert p[:, 11].max(axis=1).mean() > p[:, 0].max(axis=1).mean() + 0.05


def test_dark_room_rules_out_goals():
    environment = GridWorldConfig(side=3, episode_length=5, episodes=3, start="random")
    experiment = config(environment, label="optimal")
    rows = rows_of(experiment, 3000)
    past = history(environment, 5, Split.TRAIN, rows)
    p = replay(reduced_expert(experiment).algorithm, past)
    np.testing.assert_allclose(p.sum(axis=-1), 1, rtol=1e-12)
    hit = rows["optimal_action"][..., None] == np.arange(5)
    assert np.all(hit <= (p > 0))  # what is optimal is never ruled out
    for t in (0, 4, 9, 14):
        for state in (0, 4, 5):
            here = rows["state"][:, t] == state
            off = (hit - p)[here, t]
            assert np.all(np.abs(off.mean(axis=0)) < 4.5 * off.std(axis=0) / np.sqrt(here.sum()) + 1e-12)
    # once the goal is seen, all is known
    known = (np.cumsum(rows["reward"], axis=1) > 0)[:, :-1]
    np.testing.assert_array_equal(p[:, 1:][known], hit[:, 1:][known])
    assert known.any()
    assert not known.all()


def test_reduced_experts_that_there_are_not():
    mdp = TabularMDPConfig(n_states=3, n_actions=2)
    sphere = dataclasses.replace(LINEAR, prior="sphere")
    seen = (ContextComponent(OptimalConfig()), ContextComponent(UniformConfig()))
    for experiment, reason in (
        (config(mdp, label="optimal"), "tabular MDP"),
        (config(sphere, label="optimal"), "the prior is sphere"),
        (config(dataclasses.replace(LINEAR, noise="bounded"), label="optimal"), "the noise is bounded"),
        (config(dataclasses.replace(GAUSSIAN, noise_std=0.0), label="optimal"), "no noise"),
        (config(BERNOULLI), "approximate DPT"),
        (config(BERNOULLI, label="optimal", context=seen), "sees the environment"),
        (config(BERNOULLI, label="distillation", context=seen), "sees the environment"),
    ):
        found = reduced_expert(experiment)
        assert found.algorithm is None
        assert reason in found.reason
    gaussian = posterior_sampling(dataclasses.replace(LINEAR, prior="gaussian"))
    assert isinstance(gaussian.algorithm, algorithms.Thompson)
    assert gaussian.algorithm.noise_variance == 0.25


def test_the_divergence_orders_the_estimators():
    """The posterior's mode is nearest to the posterior; a worse estimate is farther."""
    found = {}
    for estimator in ESTIMATORS:
        experiment = config(LINEAR, estimator=estimator)
        found[estimator] = label_divergence(experiment, rows_of(experiment, 400), Split.TRAIN)
    assert found["posterior_sample"].mean == 0
    assert 0 < found["posterior_mean"].mean < found["empirical_mean"].mean
    assert "4096 samples" in found["posterior_mean"].how
    with pytest.raises(ValueError, match="expected approximate"):
        label_divergence(config(LINEAR, label="optimal"), rows_of(experiment, 4), Split.TRAIN)
    fresh = dataclasses.replace(LINEAR, prior="sphere")
    with pytest.raises(ValueError, match="prior is sphere"):
        label_divergence(config(fresh, estimator="posterior_mean"), rows_of(experiment, 4), Split.TRAIN)


def test_distances():
    p, q = np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]), np.array([[0.25, 0.25, 0.5], [0.0, 1.0, 0.0]])
    np.testing.assert_allclose(kl(p, q), [np.log(2), np.inf])
    np.testing.assert_allclose(kl(p, p), 0)
    np.testing.assert_allclose(hellinger(p, q), [np.sqrt(2 - np.sqrt(2)), np.sqrt(2)])


@pytest.mark.parametrize(
    ("environment", "expert", "expected"),
    [
        (
            TabularMDPConfig(),
            {"label": "approximate"},
            "expert.label = 'approximate': expected distillation or optimal",
        ),
        (GridWorldConfig(), {"label": "approximate"}, "environment.kind=grid_world"),
        (BERNOULLI, {"label": "optimal", "estimator": "posterior_mean"}, "null with label optimal"),
        (
            dataclasses.replace(LINEAR, action_set="fresh"),
            {"label": "approximate"},
            "expert.estimator = 'empirical_mean': expected posterior_mean or posterior_sample",
        ),
        (dataclasses.replace(LINEAR, noise_std=0.0), {"label": "approximate", "estimator": "posterior_mean"}, "noise"),
        (
            dataclasses.replace(LINEAR, prior="sphere"),
            {"label": "approximate", "estimator": "posterior_sample"},
            "prior",
        ),
        (dataclasses.replace(LINEAR, dim=9), {"label": "approximate", "estimator": "posterior_sample"}, "up to dim 8"),
        (
            dataclasses.replace(LINEAR, noise="bernoulli"),
            {"label": "approximate", "estimator": "posterior_sample"},
            "noise gaussian",
        ),
    ],
)
def test_config_problems(environment, expert, expected):
    algorithm = UCBVIConfig() if environment.kind in ("tabular_mdp", "grid_world") else LinUCBConfig()
    context = (ContextComponent(algorithm),)
    with pytest.raises(ConfigError, match=expected.replace("(", r"\(")):
        Config(environment=environment, context=context, expert=ExpertConfig(**expert))


def test_fitting_experts_are_accepted():
    for environment, estimator in (
        (dataclasses.replace(LINEAR, prior="gaussian", dim=20), "posterior_sample"),
        (dataclasses.replace(LINEAR, action_set="fresh", noise="bernoulli", noise_std=0.0), "posterior_mean"),
        (dataclasses.replace(GAUSSIAN, noise_std=0.0), None),
    ):
        assert config(environment, estimator=estimator).expert.estimates_by == (estimator or "empirical_mean")
    assert config(LINEAR, context=(ContextComponent(ThompsonConfig()),)).teacher() is None
