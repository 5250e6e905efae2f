"""Soft LinUCB in weights against the exact algorithm: along its trajectories, online, and as sizes grow.

Oracles are `icrl.algorithms.LinUCB` and `numpy.linalg.solve`. The slow tests are at the paper's setting.
"""

import re

import numpy as np
import pytest
import torch

from icrl import envs
from icrl.algorithms import build
from icrl.config import LinearBanditConfig, LinUCBConfig, TabularMDPConfig
from icrl.constructions import linucb, newton_schulz
from icrl.constructions.accelerated_gradient import residual, theorem_steps
from icrl.constructions.problem import ridge_problem
from icrl.constructions.roots import square_root_error, square_root_knots, square_root_pieces
from icrl.policy import TransformerPolicy
from icrl.rollout.loop import play
from icrl.streams import Split

PAPER = LinearBanditConfig()
SMALL = LinearBanditConfig(dim=3, n_actions=4, horizon=25)
SEED = 7


@pytest.fixture(autouse=True)
def one_thread():
    """Products this small wait for a second thread longer than they take."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


METHODS = pytest.mark.parametrize("method", ["paper", "newton_schulz", "log_depth"])


def history(environment, n, *, temperature=1.0):
    """LinUCB's own plays, as tensors, and the log-probabilities [n,T,A] of the exact soft algorithm along them."""
    index = np.arange(n, dtype=np.int64)
    played = play(environment, build(LinUCBConfig(), environment), SEED, Split.EVAL, index)
    batch = envs.sample(environment, SEED, Split.EVAL, index)
    soft = build(LinUCBConfig(temperature=temperature), environment)
    soft.reset(batch)
    indices = []
    for t in range(environment.horizon):
        indices.append(soft.indices())
        soft.update(played.action[:, t].astype(np.int64), played.reward[:, t])
    exact = (torch.from_numpy(np.stack(indices, 1)) / temperature).log_softmax(-1)
    data = torch.from_numpy(batch.action_set), torch.from_numpy(played.action), torch.from_numpy(played.reward)
    return data, exact


def largest_error(model, data, exact):
    """Largest |difference of log p|, and the share of rounds with the same best action."""
    found = model(*data).double().log_softmax(-1)
    return (found - exact).abs().max().item(), (found.argmax(-1) == exact.argmax(-1)).double().mean().item()


@METHODS
@pytest.mark.parametrize(("temperature", "tolerance"), [(1.0, 1e-3), (0.3, 1e-2)])
def test_it_is_soft_linucb_to_the_tolerance(method, temperature, tolerance):
    data, exact = history(SMALL, 4, temperature=temperature)
    model = linucb(SMALL, temperature=temperature, method=method, tolerance=tolerance)
    error, agreement = largest_error(model, data, exact)
    assert error <= model.report.choices["guaranteed"] <= tolerance
    assert agreement == 1


@METHODS
def test_single_precision(method):
    data, exact = history(SMALL, 4)
    model = linucb(SMALL, method=method, tolerance=2e-3, dtype=torch.float32)
    assert model.dtype == torch.float32
    assert largest_error(model, data, exact)[0] <= 2e-3


@pytest.mark.parametrize("method", ["paper", "log_depth"])
@pytest.mark.parametrize(
    ("environment", "temperature"),
    [(LinearBanditConfig(dim=2, n_actions=3, horizon=5), 1.0), (SMALL, 1.0), (SMALL, 0.2)],
    ids=["d2_T5", "d3_T25", "cold"],
)
def test_single_precision_just_above_what_it_reaches(environment, temperature, method):
    """Rounding of the chords included: the first slope, 1 / 4e, multiplies it."""
    data, exact = history(environment, 12, temperature=temperature)
    options = {"method": method, "temperature": temperature, "dtype": torch.float32}
    with pytest.raises(ValueError, match=r"tolerance = 1e-06: torch.float32 reaches ") as refusal:
        linucb(environment, tolerance=1e-6, **options)
    least = float(re.search(r"reaches (\S+)", str(refusal.value))[1])
    for tolerance in (1.05 * least, 3 * least):
        model = linucb(environment, tolerance=tolerance, **options)
        error, _ = largest_error(model, data, exact)
        assert error <= model.report.choices["guaranteed"] <= tolerance


def test_more_knots_than_a_dtype_has_room_for_are_told_by_what_is_guaranteed():
    data, exact = history(SMALL, 4)
    coarse, fine = (linucb(SMALL, tolerance=2e-3, knots=n, dtype=torch.float32) for n in (60, 400))
    error, _ = largest_error(fine, data, exact)
    assert 2e-3 < error <= fine.report.choices["guaranteed"]
    assert largest_error(coarse, data, exact)[0] < error / 3


@METHODS
def test_blocks_hold_what_their_names_say(method):
    data, _ = history(SMALL, 2)
    model = linucb(SMALL, method=method, tolerance=1e-4, knots=30)
    last = list(model.states(*data))[-1][:, ::2]  # the tokens that ask
    features = data[0].double().gather(1, data[1].long()[..., None].expand(-1, -1, 3))
    outer = torch.einsum("btp,btq->btpq", features, features).cumsum(1)
    sums = (features * data[2].double()[..., None]).cumsum(1)
    gram = torch.eye(3, dtype=torch.float64) + torch.cat([torch.zeros(2, 1, 3, 3), outer[:, :-1]], 1)
    estimate = np.linalg.solve(gram[:, 1:].numpy(), sums[:, :-1, :, None].numpy())[..., 0]
    directions = np.linalg.solve(gram[:, :, None].numpy(), data[0].double()[:, None, :, :, None].numpy())[..., 0]
    np.testing.assert_allclose(model.stream.read(last, "ridge_estimate")[:, 1:], estimate, atol=1e-5)
    np.testing.assert_allclose(model.stream.read(last, "directions").unflatten(-1, (4, 3)), directions, atol=1e-5)


def test_the_paper_s_depth_is_what_the_error_asks_for():
    data, exact = history(SMALL, 4)
    errors = [largest_error(linucb(SMALL, ridge_layers=steps, knots=300), data, exact)[0] for steps in (10, 30, 90)]
    assert errors[0] > 10 * errors[1] > 100 * errors[2]


def test_reported_sizes():
    A, d = SMALL.n_actions, SMALL.dim
    paper, deep = linucb(SMALL, ridge_layers=7, knots=21), linucb(SMALL, method="log_depth", ridge_layers=5, knots=21)
    assert (paper.report.layers, paper.report.heads) == (9, max(4 + 2 * A, 3 * A))
    assert (paper.report.embed_dim, paper.report.mlp_dim) == (d + 1 + A * d + A + 3 * d + 3 * A * d + 3 * A + 3, 84)
    assert (deep.report.layers, deep.report.heads) == (8, max(2 * d * (d + 1), 2 * d * (A + 1)))
    assert paper.report.theorem["layers"] > 100
    assert paper.report.operator_norm == pytest.approx(paper.operator_norm(), rel=1e-12)
    assert [block.dense().operator_norm() for block in deep.blocks[:3]] == pytest.approx(
        [block.operator_norm() for block in deep.blocks[:3]], rel=1e-12
    )


@pytest.mark.parametrize("method", ["paper", "log_depth"])
def test_online_it_plays_as_the_algorithm_does(method):
    model = linucb(SMALL, method=method, ridge_layers=60 if method == "paper" else None)
    assert_same_regret(SMALL, model, 20)


def assert_same_regret(environment, model, n, *, group=None):
    """The same actions but where a draw falls between the two distributions; the paired difference of regret is 0."""
    group = group or n
    ours, theirs = [], []
    for first in range(0, n, group):
        index = np.arange(first, min(first + group, n), dtype=np.int64)
        for plays, algorithm in (
            (ours, TransformerPolicy(model)),
            (theirs, build(LinUCBConfig(temperature=1.0), environment)),
        ):
            plays.append(play(environment, algorithm, SEED, Split.EVAL, index))
    regret = [np.concatenate([p.suboptimality for p in plays]).cumsum(1) for plays in (ours, theirs)]
    difference = regret[0] - regret[1]
    error = difference.std(0, ddof=1) / np.sqrt(n)
    same = np.mean([np.mean(a.action == b.action) for a, b in zip(ours, theirs, strict=True)])
    print(
        f"final regret {regret[0][:, -1].mean():.3f} and {regret[1][:, -1].mean():.3f}, same action {same:.4f}, "
        f"paired difference {difference[:, -1].mean():.4f} +- {error[-1]:.4f}"
    )
    assert (np.abs(difference.mean(0)) <= 2 * error + 1e-9).all()
    assert same >= 0.99


@METHODS
def test_through_the_cache_and_without(method):
    model = linucb(SMALL, method=method, ridge_layers=6, knots=8)
    data, _ = history(SMALL, 3)
    cache = model.new_cache(3)
    logits = []
    for t in range(SMALL.horizon):
        previous = (data[1][:, t - 1], data[2][:, t - 1]) if t else None
        logits.append(model.forward_cached(data[0], previous, cache))
    torch.testing.assert_close(torch.stack(logits, 1), model(*data), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("pieces", [1, 7, 100])
def test_chords_of_the_square_root(pieces):
    knots, values = square_root_knots(5.0, pieces)
    x = np.linspace(0, 5, 100_001)
    below = np.sqrt(x) - np.interp(x, knots, values)
    assert (knots[-1], values[-1]) == pytest.approx((5.0, 5**0.5))
    assert below.min() >= -1e-12
    assert below.max() == pytest.approx(square_root_error(5.0, pieces), rel=1e-3)
    assert square_root_pieces(5.0, square_root_error(5.0, pieces) * 1.0001) == pieces


@pytest.mark.parametrize("condition", [3.0, 1200.0, 1e6])
@pytest.mark.parametrize("n_steps", [1, 4, 9])
def test_n_steps_are_the_chebyshev_polynomial_of_degree_two_to_the_n(condition, n_steps):
    optimum = 1 / np.cosh(2.0**n_steps * np.arccosh((condition + 1) / (condition - 1)))
    assert newton_schulz.schedule(condition, n_steps).error == pytest.approx(optimum, rel=1e-6, abs=1e-15)


@pytest.mark.parametrize("condition", [2.0, 1e3, 1e7])
def test_schedules_hold_for_every_spectrum(condition):
    for plain in (False, True):
        n_steps = newton_schulz.steps_for(condition, 1e-6, plain=plain)
        plan = newton_schulz.schedule(condition, n_steps, plain=plain)
        y = np.geomspace(1 / condition, 1, 10_001)
        for step in plan.steps:
            y = y * (step.a - step.b * y)
            assert y.max() <= 1 + 1e-12
        assert np.abs(plan.centre * y - 1).max() <= plan.error + 1e-12 <= 1e-6 + 1e-12
        share = 1 if plain else 0.5
        assert n_steps <= np.ceil(share * np.log2(condition) + np.log2(np.log(2e6)))


def test_the_theorem_s_formulae():
    problem = ridge_problem(PAPER, 1.0, reward_bound=np.sqrt(5) * np.sqrt(5) + 1.5)
    assert theorem_steps(problem, 0.01 / (12 * np.sqrt(5))) == 2318  # section 2.2 at the paper's setting
    assert (problem.theorem_condition, problem.condition) == (pytest.approx(2400), pytest.approx(1200))
    assert residual(problem, 50) > residual(problem, 400) > residual(problem, 1500)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": 1e-5, "dtype": torch.float32}, r"tolerance = 1e-05.*float32 reaches"),
        ({"tolerance": 1e-15}, r"tolerance = 1e-15.*float64 reaches"),
        ({"tolerance": 1e-8}, r"tolerance = 1e-08.*float64 reaches 5"),
        ({"method": "exact"}, r"method = 'exact': expected one of paper, newton_schulz, log_depth"),
        ({"ridge_layers": 2.5}, r"ridge_layers = 2\.5: expected a whole number"),
        ({"knots": 3.5}, r"knots = 3\.5: expected a whole number"),
        ({"knots": 10.0}, r"knots = 10\.0: expected a whole number, as an int"),
        ({"dtype": torch.int32}, r"dtype = torch\.int32: expected a floating-point type"),
        ({"knots": float("inf")}, r"knots = inf: expected a whole number"),
        ({"tolerance": 0.0}, "tolerance = 0"),
        ({"temperature": 0.0}, "temperature = 0"),
        ({"temperature": -1.0}, "temperature = -1"),
        ({"ridge": 0.0}, "ridge = 0"),
        ({"ridge": float("nan")}, "ridge = nan"),
        ({"confidence": -1.0}, "confidence = -1"),
        ({"ridge_layers": 0}, "ridge_layers = 0"),
        ({"knots": 1}, "knots = 1"),
        ({"action_bound": -2.0}, "action_bound = -2"),
        ({"reward_bound": 0.0}, "reward_bound = 0"),
    ],
)
def test_what_cannot_be_built_says_why(options, message):
    with pytest.raises(ValueError, match=message):
        linucb(SMALL, **options)


def test_more_neurons_than_a_model_may_have():
    environment = LinearBanditConfig(dim=2, n_actions=60, horizon=5)
    with pytest.raises(ValueError, match=r"for each of 60 actions, expected at most 1092"):
        linucb(environment, method="log_depth", tolerance=1e-6, confidence=2.0)


def test_sizes_of_nothing_and_horizons_out_of_reach():
    for field in ("dim", "n_actions"):
        with pytest.raises(ValueError, match=f"{field} = 0"):
            linucb(LinearBanditConfig(**{field: 0}))
    with pytest.raises(ValueError, match=r"horizon = 2049.*up to T = 2048"):
        linucb(LinearBanditConfig(horizon=2049), tolerance=1.0, dtype=torch.float32)
    with pytest.raises(ValueError, match="tabular_mdp"):
        linucb(TabularMDPConfig())
    with pytest.raises(ValueError, match="fresh"):
        linucb(LinearBanditConfig(action_set="fresh"))
    model = linucb(LinearBanditConfig(dim=1, n_actions=2, horizon=2), method="log_depth")
    data = torch.ones(1, 2, 1), torch.zeros(1, 3, dtype=torch.int64), torch.zeros(1, 3)
    with pytest.raises(ValueError, match="the horizon is over"):
        model(*data)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "bound", "layers"),
    [
        ({"ridge_layers": 398, "knots": 200}, 1e-3, 400),
        ({"ridge_layers": 398, "knots": 200, "dtype": torch.float32, "tolerance": 5e-3}, 5e-3, 400),
        ({"method": "log_depth"}, 1e-3, 40),
        ({"method": "newton_schulz"}, 1e-3, 40),
        ({"method": "log_depth", "dtype": torch.float32, "tolerance": 5e-3}, 5e-3, 40),
    ],
)
def test_at_the_paper_s_setting(options, bound, layers):
    data, exact = history(PAPER, 20)
    model = linucb(PAPER, **options)
    errors = [largest_error(model, [x[k : k + 5] for x in data], exact[k : k + 5]) for k in range(0, 20, 5)]
    print(options, errors, model.report)
    assert max(error for error, _ in errors) <= bound
    assert min(agreement for _, agreement in errors) >= 0.99
    assert model.report.layers <= layers


@pytest.mark.slow
def test_400_layers_play_20_environments():
    model = linucb(PAPER, ridge_layers=398, knots=200, tolerance=5e-3, dtype=torch.float32)
    assert_same_regret(PAPER, model, 20)


@pytest.mark.slow
def test_log_depth_plays_200_environments():
    assert_same_regret(PAPER, linucb(PAPER, method="log_depth"), 200, group=50)
