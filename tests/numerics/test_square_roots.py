"""Square roots of matrices for constructions: Pade in partial fractions, and cubics that invert the root."""

import numpy as np
import pytest

from icrl.constructions.inverse_root import root_schedule, root_steps_for
from icrl.constructions.pade import Pade, spread_errors, steps_for, terms_for, theorem_layers, theorem_terms
from icrl.constructions.problem import RidgeProblem

PAPER = RidgeProblem(5, 10, 200, ridge=2.25, action_bound=5**0.5, reward_bound=10.0)


@pytest.mark.parametrize(("terms", "error"), [(4, 2.0), (6, 0.41), (8, 0.082), (10, 0.016), (14, 6.5e-4), (20, 5.2e-6)])
def test_pade_reaches_its_bound_and_not_less(terms, error):
    pade = Pade.of(PAPER, terms)
    sigma = np.geomspace(PAPER.ridge, PAPER.horizon * (PAPER.action_bound**2 + PAPER.ridge), 20_001)
    x = sigma / pade.shift - 1
    root = np.sqrt(pade.shift) * (1 + sum(a * x / (1 + b * x) for a, b in zip(pade.a, pade.b, strict=True)))
    found = np.abs(root - np.sqrt(sigma)).max()
    assert found <= pade.error * (1 + 1e-6)
    assert found == pytest.approx(error, rel=0.05)  # the table of section 2.3
    assert pade.error < 1.05 * found


def test_sizes_of_the_paper_s_route():
    terms = terms_for(PAPER, 2.25, 2.5e-5)
    steps = steps_for(PAPER, 2.25, terms, 1e-4)
    errors = spread_errors(PAPER, 2.25, Pade.of(PAPER, terms))
    found = [next(errors) for _ in range(steps)]
    assert found[-1] <= 1e-4 < found[-2]
    assert theorem_terms(PAPER, 1e-2) == pytest.approx(20.3, abs=0.05)  # section 2.3
    assert theorem_layers(PAPER, 1e-4) > 2 * steps + 4


@pytest.mark.parametrize("condition", [1.0, 2.0, 1e3, 1e7])
@pytest.mark.parametrize("plain", [False, True])
def test_schedules_hold_for_every_spectrum(condition, plain):
    for n_steps in range(1, 14):
        plan = root_schedule(condition, n_steps, plain=plain)
        y, x = np.geomspace(1 / condition, 1, 10_001), 1.0
        start = y
        for step in plan.steps:
            assert step.a >= step.b
            x = x * (step.a - step.b * y)
            y = step(y)
            assert y.max() <= 1 + 1e-12
        assert np.abs(plan.centre * np.sqrt(start) * x - 1).max() <= plan.error + 1e-9


@pytest.mark.parametrize("condition", [1e2, 1e4, 1e6, 1e8])
@pytest.mark.parametrize("error", [1e-2, 1e-6, 1e-12])
def test_depth_grows_with_the_logarithm_of_the_condition_number(condition, error):
    n_steps = root_steps_for(condition, error)
    assert n_steps <= np.log(condition) / np.log(27 / 4) + np.log2(np.log2(1 / error)) + 1
    plain = next(n for n in range(99) if root_schedule(condition, n, plain=True).error <= error)
    assert n_steps < plain
    assert plain >= np.log(condition) / np.log(9 / 4)


def test_small_eigenvalues_grow_by_up_to_27_4():
    step = root_schedule(1e9, 1).steps[0]
    assert step(1e-9) / 1e-9 == pytest.approx(27 / 4, rel=1e-3)
    assert step(1e-9) == pytest.approx(step(1.0), rel=1e-3)
