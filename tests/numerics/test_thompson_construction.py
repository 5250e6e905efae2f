"""Thompson sampling in weights: the posterior against numpy.linalg.eigh, the reads against exact probabilities.

The slow tests are at the paper's setting, and with more actions and environments.
"""

import numpy as np
import pytest
import torch
from scipy.special import log_ndtr
from scipy.stats import multivariate_normal

from icrl import envs
from icrl.algorithms import StreamDraws, build
from icrl.config import BernoulliBanditConfig, LinearBanditConfig, TabularMDPConfig, ThompsonConfig
from icrl.constructions import SampledThompson, accelerated_gradient, linucb, orthant, thompson
from icrl.constructions.problem import ridge_problem
from icrl.policy import TransformerPolicy
from icrl.rollout.loop import play
from icrl.streams import Split

PAPER = LinearBanditConfig()
SMALL = LinearBanditConfig(dim=3, n_actions=3, horizon=30)
PAIR = LinearBanditConfig(dim=3, n_actions=2, horizon=30)
SEED = 3
METHODS = pytest.mark.parametrize("method", ["paper", "log_depth"])


@pytest.fixture(autouse=True)
def one_thread():
    """Products this small wait for a second thread longer than they take."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def posterior(a, action, reward, variance, prior_variance):
    """<mu_t, a_k> [n,T,A] and sqrt(r) Sigma_t^{-1/2} a_k [n,T,A,d] by eigenvalues."""
    n, _, d = a.shape
    sigma, sums = np.tile(np.eye(d) * variance / prior_variance, (n, 1, 1)), np.zeros((n, d))
    means, spreads = [], []
    for t in range(action.shape[1]):
        w, v = np.linalg.eigh(sigma)
        root = (v / np.sqrt(w)[:, None]) @ v.transpose(0, 2, 1)
        means.append(np.einsum("nad,nde,nef,nf->na", a, root, root, sums))
        spreads.append(np.sqrt(variance) * a @ root)
        x = a[np.arange(n), action[:, t]]
        sigma = sigma + x[:, :, None] * x[:, None, :]
        sums = sums + x * reward[:, t, None]
    return np.stack(means, 1), np.stack(spreads, 1)


def history(environment, n, algorithm=None):
    """Thompson sampling's own plays, as tensors, and what it drew from: means [n,T,A] and spreads [n,T,A,d]."""
    index = np.arange(n, dtype=np.int64)
    algorithm = algorithm or ThompsonConfig()
    played = play(environment, build(algorithm, environment), SEED, Split.EVAL, index)
    actions = envs.action_sets(environment, SEED, Split.EVAL, index)
    variance = environment.noise_std**2
    exact = posterior(
        actions.astype(float), played.action, played.reward.astype(float), variance, algorithm.prior_variance
    )
    return tuple(torch.from_numpy(x) for x in (actions, played.action, played.reward)), *exact


def with_a_row(data):
    """What the model of read samples is shown, z_t = 0."""
    return torch.nn.functional.pad(data[0], (0, 0, 0, 1)), *data[1:]


def posterior_error(model, data, means, spreads):
    """Largest error of a mean, and of a spread in norm, at the tokens that ask."""
    *_, last = model.states(*data)
    found = [model.stream.read(last[:, ::2], name).double().numpy() for name in ("means", "spreads")]
    return (
        np.abs(found[0] - means).max(),
        np.linalg.norm(found[1].reshape(spreads.shape) - spreads, axis=-1).max(),
    )


@METHODS
def test_the_posterior_to_the_tolerance(method):
    data, means, spreads = history(SMALL, 3)
    model = thompson(SMALL, ThompsonConfig(), read="samples", method=method, tolerance=1e-5)
    mean_error, spread_error = posterior_error(model, with_a_row(data), means, spreads)
    print(mean_error, spread_error, model.report)
    assert spread_error <= model.report.choices["guaranteed"] <= 1e-5
    assert mean_error <= 1e-5
    assert model.report.layers == 2 * model.report.choices["steps"] + {"paper": 5, "log_depth": 4}[method]


def test_a_posterior_with_a_wide_prior_in_one_dimension():
    environment = LinearBanditConfig(dim=1, n_actions=2, horizon=12)
    algorithm = ThompsonConfig(prior_variance=50.0)
    data, means, spreads = history(environment, 3, algorithm)
    model = thompson(environment, algorithm, read="two_arms", tolerance=1e-6, reward_bound=40.0)
    assert max(posterior_error(model, data, means, spreads)) <= 1e-6


def test_single_precision():
    data, means, spreads = history(PAIR, 4)
    model = thompson(PAIR, ThompsonConfig(), read="two_arms", tolerance=1e-4, dtype=torch.float32)
    assert model.dtype == torch.float32
    assert max(posterior_error(model, data, means, spreads)) <= 1e-4


def test_the_printed_step_size_diverges_at_early_tokens(monkeypatch):
    data, _, spreads = history(SMALL, 1)
    options = {"read": "samples", "method": "paper", "terms": 8, "steps": 50}
    own = thompson(SMALL, ThompsonConfig(), **options)
    printed_rates = accelerated_gradient._rates(ridge_problem(SMALL, 2.25))
    monkeypatch.setattr(accelerated_gradient, "_rates", lambda problem: printed_rates)
    printed = thompson(SMALL, ThompsonConfig(), **options)

    def first_token(model):
        *_, last = model.states(*with_a_row(data))
        found = model.stream.read(last[:, 0], "spreads").numpy().reshape(3, 3)
        return np.abs(found - spreads[0, 0]).max()

    assert first_token(own) < 0.1
    assert not first_token(printed) < 1e6  # erratum E3


def test_two_arms_are_exact_in_the_limit_of_knots():
    data, means, spreads = history(PAIR, 10)
    u = (means[..., 0] - means[..., 1]) / np.linalg.norm(spreads[..., 0, :] - spreads[..., 1, :], axis=-1)
    exact = np.stack([log_ndtr(u), log_ndtr(-u)], -1)
    errors = []
    for knots in (50, 200, 800):
        model = thompson(PAIR, ThompsonConfig(), read="two_arms", knots=knots, tolerance=1e-8)
        with torch.inference_mode():
            errors.append(np.abs(model(*data).log_softmax(-1).numpy() - exact).max())
    assert errors[0] > 10 * errors[1] > 100 * errors[2]
    assert errors[2] < 5e-4
    assert np.ptp(u) > 3


def fitted_error(environment, n):
    """Mean KL(exact || model) and the largest |difference of probability| along Thompson sampling's own plays."""
    data, means, spreads = history(environment, n)
    A, d = environment.n_actions, environment.dim
    model = thompson(environment, ThompsonConfig(), read="fitted")
    u, rho = orthant.standardised(spreads.reshape(-1, A, d), means.reshape(-1, A))
    exact = orthant.orthant_probability(u.reshape(-1, A - 1), rho.reshape(-1, A - 1, A - 1), 1024).reshape(means.shape)
    exact /= exact.sum(-1, keepdims=True)
    with torch.inference_mode():
        found = model(*data).log_softmax(-1).numpy()
    divergence = (exact * (np.log(np.maximum(exact, 1e-300)) - found)).sum(-1).mean()
    largest = np.abs(np.exp(found) - exact).max()
    print(f"A = {A}: KL {divergence:.2g}, largest difference {largest:.2g}, {model.report}")
    return divergence, largest, model.report.choices


def test_three_arms_by_a_fitted_layer():
    divergence, largest, choices = fitted_error(SMALL, 10)
    assert divergence < 5e-4
    assert largest < 0.04
    assert choices["fit_divergence"] < 5e-4
    assert choices["fit_largest"] < 0.05


@pytest.mark.slow
def test_five_arms_by_a_fitted_layer():
    divergence, largest, _ = fitted_error(LinearBanditConfig(dim=5, n_actions=5, horizon=50), 20)
    assert divergence < 5e-3
    assert largest < 0.15


def test_orthant_probabilities():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 3, 5))
    x /= np.linalg.norm(x, axis=2, keepdims=True)
    mean, correlation = rng.normal(size=(6, 3)), x @ x.transpose(0, 2, 1)
    found = orthant.orthant_probability(mean, correlation, 4096)
    exact = [
        multivariate_normal.cdf(m, cov=c, abseps=1e-7, releps=1e-7, rng=np.random.default_rng(1))
        for m, c in zip(mean, correlation, strict=True)
    ]
    np.testing.assert_allclose(found, exact, atol=2e-5)


def test_samples_are_the_index_with_the_same_gaussian():
    index = np.arange(20)
    model = thompson(SMALL, ThompsonConfig(), read="samples", tolerance=1e-8)
    played = play(SMALL, SampledThompson(model), SEED, Split.EVAL, index)
    actions = envs.action_sets(SMALL, SEED, Split.EVAL, index).astype(float)
    means, spreads = posterior(actions, played.action, played.reward.astype(float), SMALL.noise_std**2, 1.0)
    draws = StreamDraws(SEED, Split.EVAL, index)
    for t in range(SMALL.horizon):
        draws.round = t
        best = (means[:, t] + np.einsum("nad,nd->na", spreads[:, t], draws.normals(3))).argmax(1)
        np.testing.assert_array_equal(played.action[:, t], best)
    assert len(np.unique(played.action)) == 3


def test_frequencies_of_the_samples():
    environment = LinearBanditConfig(dim=2, n_actions=3, horizon=6)
    data, means, spreads = history(environment, 3)
    policy = SampledThompson(thompson(environment, ThompsonConfig(), read="samples"))
    policy.reset(envs.sample(environment, SEED, Split.EVAL, np.arange(3)))
    for t in range(5):
        policy.update(data[1][:, t].numpy().astype(np.int64), data[2][:, t].numpy())
    u, rho = orthant.standardised(spreads[:, 5], means[:, 5])
    exact = orthant.orthant_probability(u.reshape(9, 2), rho.reshape(9, 2, 2), 1024).reshape(3, 3)
    found = policy.probabilities()
    np.testing.assert_allclose(found.sum(1), 1)
    assert (np.abs(found - exact) <= 4 * np.sqrt(exact * (1 - exact) / policy.samples) + 1e-3).all()


def assert_same_regret(environment, n, group):
    """Paired difference of regret to the algorithm, 0 within 2 standard errors."""
    model = thompson(environment, ThompsonConfig(), read="samples")
    regret = []
    for policy in (SampledThompson(model), build(ThompsonConfig(), environment)):
        plays = [
            play(environment, policy, SEED, Split.EVAL, np.arange(first, first + group)) for first in range(0, n, group)
        ]
        regret.append(np.concatenate([p.suboptimality for p in plays]).sum(1))
    difference = regret[0] - regret[1]
    error = difference.std(ddof=1) / np.sqrt(n)
    print(f"regret {regret[0].mean():.3f} and {regret[1].mean():.3f}, {difference.mean():.4f} +- {error:.4f}")
    assert abs(difference.mean()) <= 2 * error


def test_it_plays_as_the_algorithm_does():
    assert_same_regret(LinearBanditConfig(dim=3, n_actions=3, horizon=15), 200, 200)


@pytest.mark.slow
def test_it_plays_as_the_algorithm_does_with_ten_actions():
    assert_same_regret(LinearBanditConfig(horizon=60), 200, 50)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-4), (torch.float32, 1e-3)])
def test_the_posterior_at_the_paper_s_setting(dtype, tolerance):
    data, means, spreads = history(PAPER, 20)
    data = with_a_row(data)
    model = thompson(PAPER, ThompsonConfig(), read="samples", tolerance=tolerance, dtype=dtype)
    found = [
        posterior_error(model, [x[k : k + 5] for x in data], means[k : k + 5], spreads[k : k + 5])
        for k in range(0, 20, 5)
    ]
    print(model.report, np.max(found, axis=0))
    assert np.max(found) <= tolerance  # of the means and of the spreads
    assert model.report.layers <= 45


def test_a_two_armed_model_plays_and_caches():
    model = thompson(PAIR, ThompsonConfig(), read="two_arms", steps=4, knots=20)
    plays = [
        play(PAIR, TransformerPolicy(model, cache=cache), SEED, Split.EVAL, np.arange(3)) for cache in (True, False)
    ]
    np.testing.assert_array_equal(plays[0].action, plays[1].action)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"read": "fitted"}, "read = 'fitted' with 2 actions: expected two_arms or samples"),
        ({"method": "exact"}, "method = 'exact': expected one of paper, log_depth"),
        ({"tolerance": 0.0}, "tolerance = 0"),
        ({"tolerance": 1e-13}, "tolerance = 1e-13.*float64 reaches"),
        ({"tolerance": 1e-5, "dtype": torch.float32}, "tolerance = 1e-05.*float32 reaches"),
        ({"separation": 0.0}, "separation = 0"),
        ({"separation": 4.0}, "separation = 4: expected at most 2 B_a = 3.46"),
        ({"knots": 1}, "knots = 1: expected at least 2"),
        ({"floor": 0.5}, "floor = 0.5"),
        ({"temperature": 0.0}, "temperature = 0"),
        ({"steps": 0}, "steps = 0"),
        ({"steps": 2.5}, r"steps = 2\.5: expected a whole number"),
        ({"terms": 2.5}, r"terms = 2\.5: expected a whole number"),
        ({"knots": 3.5}, r"knots = 3\.5: expected a whole number"),
        ({"terms": 0}, "terms = 0"),
        ({"method": "paper", "terms": 2}, "terms = 2: they leave .* expected at least"),
        ({"action_bound": -1.0}, "action_bound = -1"),
    ],
)
def test_what_cannot_be_built_says_why(options, message):
    with pytest.raises(ValueError, match=message):
        thompson(PAIR, ThompsonConfig(), **({"read": "two_arms"} | options))


def test_other_environments_are_refused():
    samples = {"read": "samples"}
    for field in ("dim", "n_actions", "horizon"):
        with pytest.raises(ValueError, match=f"{field} = 0"):
            thompson(LinearBanditConfig(**{field: 0}), ThompsonConfig(), **samples)
    with pytest.raises(ValueError, match="n_actions = 1"):
        thompson(LinearBanditConfig(n_actions=1), ThompsonConfig(), **samples)
    with pytest.raises(ValueError, match=r"horizon = 2049.*up to T = 2048"):
        thompson(LinearBanditConfig(horizon=2049), ThompsonConfig(), **samples, tolerance=1.0, dtype=torch.float32)
    for environment in (TabularMDPConfig(), BernoulliBanditConfig()):
        with pytest.raises(ValueError, match="expected linear_bandit"):
            thompson(environment, ThompsonConfig(), **samples)
    with pytest.raises(ValueError, match="fresh"):
        thompson(LinearBanditConfig(action_set="fresh"), ThompsonConfig(), **samples)
    with pytest.raises(ValueError, match="read = 'two_arms' with 3 actions: expected fitted or samples"):
        thompson(SMALL, ThompsonConfig(), read="two_arms")
    with pytest.raises(ValueError, match="at most 8"):
        thompson(PAPER, ThompsonConfig(), read="fitted")
    with pytest.raises(ValueError, match="noise_std = 0"):
        thompson(LinearBanditConfig(noise_std=0.0), ThompsonConfig(), **samples)
    with pytest.raises(ValueError, match="no block 'z'"):
        SampledThompson(linucb(SMALL, ridge_layers=1, knots=4))
    policy = SampledThompson(thompson(SMALL, ThompsonConfig(), **samples))
    with pytest.raises(ValueError, match="environments of 2 actions in dimension 3"):
        policy.reset(envs.sample(PAIR, SEED, Split.EVAL, np.arange(2)))
