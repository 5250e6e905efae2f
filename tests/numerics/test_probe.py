"""Probes: what a construction writes into its stream is found there, from the layer that writes it on."""

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import eval.probe
import eval.theory
from eval.plays import plays
from eval.probe import probe, r_squared, targets
from icrl import checkpoint
from icrl.config import LinearBanditConfig, LinUCBConfig, ModelConfig, TabularMDPConfig, UniformConfig
from icrl.constructions import linucb
from icrl.model import Transformer

BANDIT = LinearBanditConfig(dim=2, n_actions=3, horizon=8, noise_std=0.5)


def test_targets_are_ridge_regression():
    data = plays(BANDIT, LinUCBConfig(), 3, 4)
    found = targets(data, 0.5)
    for b, t in ((0, 0), (1, 3), (3, 7)):
        a = data.shown[b].double().numpy()
        seen, rewards = a[data.action[b, :t].numpy()], data.reward[b, :t].double().numpy()
        gram = 0.5 * np.eye(2) + seen.T @ seen
        np.testing.assert_allclose(found["ridge_estimate"][b, t], np.linalg.solve(gram, seen.T @ rewards), atol=1e-12)
        np.testing.assert_allclose(found["directions"][b, t].reshape(3, 2), np.linalg.solve(gram, a.T).T, atol=1e-12)
        np.testing.assert_allclose(found["gram"][b, t], gram[[0, 0, 1], [0, 1, 1]], atol=1e-12)


def test_a_construction_carries_what_it_computes_where_it_computes_it():
    model = linucb(BANDIT, method="log_depth", tolerance=1e-3)
    found = probe(model, plays(BANDIT, LinUCBConfig(), 3, 64))
    solved = model.report.layers - 1  # the layer that multiplies by the inverse is the last but one
    for name in ("ridge_estimate", "directions"):
        assert len(found.r2[name]) == model.report.layers + 1
        assert found.r2[name][solved] > 0.999
        assert found.r2[name][0] < 0.95
    # after the first layer A_t / i stands in the token, which is not linear in A_t: i is another coordinate
    assert found.r2["ridge_estimate"][solved] > found.r2["ridge_estimate"][1] > found.r2["ridge_estimate"][0]
    assert (found.fitted, found.held_out) == (48, 16)
    assert len(found.table().splitlines()) == model.report.layers + 2


def test_r_squared_of_known_signals():
    g = np.random.default_rng(0)
    x, slopes = g.normal(size=(40, 10, 6)), g.normal(size=(6, 2))
    x[..., 5] = 3.0  # a constant column
    exact, noise = x @ slopes + 1, g.normal(size=(40, 10, 2))
    split = lambda y: r_squared(x[:30], y[:30], x[30:], y[30:])  # noqa: E731
    assert split(exact) > 1 - 1e-8
    assert abs(split(noise)) < 0.1
    assert split(exact + noise * exact.std((0, 1))) == pytest.approx(0.5, abs=0.1)


def test_refusals():
    mdp = TabularMDPConfig()
    model, data = Transformer(ModelConfig(), mdp), plays(mdp, UniformConfig(), 3, 8)
    with pytest.raises(ValueError, match="tabular_mdp"):
        probe(model, data)
    with pytest.raises(ValueError, match="4 trajectories"):
        probe(Transformer(ModelConfig(), BANDIT), plays(BANDIT, LinUCBConfig(), 3, 4))


def test_the_commands(tmp_path):
    checkpoint.save(Transformer(ModelConfig(layers=2), BANDIT).to(torch.float32), tmp_path / "trained")
    checkpoint.save(linucb(BANDIT, method="log_depth", ridge_layers=3, knots=5), tmp_path / "written")

    def run(app, *arguments):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        return result.exit_code, result.output

    code, output = run(eval.probe.app, tmp_path / "trained", "--environments", 16)
    assert code == 0, output
    lines = (tmp_path / "trained" / "figures" / "probe.csv").read_text().splitlines()
    assert lines[0] == "layers,target,r2"
    assert len(lines) == 1 + 3 * 3
    assert run(eval.probe.app, tmp_path / "trained", "--environments", 2)[0] == 2
    for name, what in (("trained", "practical"), ("written", "theory")):
        code, output = run(eval.theory.app, tmp_path / name, "n=1000", "ratio=2", "eps_real=0.1")
        assert code == 0, output
        assert what in output.splitlines()[0]
        assert "sqrt(2 eps_real)                          0.4472" in output
    for arguments, message in (
        ((), "n: expected n="),
        (("n=5",), "ratio: expected ratio="),
        (("m=5",), "m=5: expected one of n="),
        (("n=x",), "n = x: expected a number"),
        (("n=5", "ratio=0.5"), "ratio = 0.5: expected at least 1"),
        (("n=2.5", "ratio=1"), r"n = 2.5: expected a whole number"),
        (("n=inf", "ratio=1"), r"n = inf: expected a whole number of trajectories, at most 1e+30"),
        (("n=1e160", "ratio=1"), r"n = 1e+160: expected a whole number of trajectories, at most 1e+30"),
        (("n=5", "ratio=1", "delta=2"), "delta = 2.0: expected a probability"),
    ):
        code, output = run(eval.theory.app, tmp_path / "written", *arguments)
        assert code == 2
        assert message in output
