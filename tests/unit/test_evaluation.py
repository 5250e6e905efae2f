"""The evaluation of a run directory: numbers that are known in advance, repeating it, and what it refuses.

The models are not trained: one is near uniform, another always prefers action 0.
"""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import icrl.checkpoint
import icrl.envs
from data_gen.generate import generate
from eval import imitation, online
from eval.__main__ import app
from eval.results import load
from eval.run import check, evaluate_run
from icrl.board import Board, read_records
from icrl.config import ConfigError, override
from icrl.config import load as load_config
from icrl.model import Transformer
from icrl.run_dir import RunDirectory
from icrl.streams import Split

SMALL = [
    "environment={dim: 2, n_actions: 4, horizon: 12, noise_std: 0.3}",
    "model={layers: 1, heads: 2, embed_dim: 8, mlp_dim: 8, tokens: merged}",
    "dataset={train: 128, validation: 8, test: 50, actors: 0}",
    "eval.environments=300",
    "eval.expect={teacher_ratio: null, uniform_ratio: null}",
]


def new_run(root, *overrides, prefers=None):
    """A run directory with a model as training leaves it; `prefers`: the logit of action 0, the others' being 0."""
    loaded = load_config("configs/demo.yaml", [f"storage.root={root}", *SMALL, *overrides])
    run = RunDirectory.open(loaded)
    model = Transformer(loaded.config.model, loaded.config.environment, seed=3)
    if prefers is not None:
        with torch.no_grad():
            model.frame.read_out.weight.zero_()
            model.frame.read_out.bias[0] = prefers
    icrl.checkpoint.save(model, run.path)
    run.set_status("trained", step=7)
    return run


def environments(config):
    indices = np.arange(config.eval.environments, dtype=np.int64)
    return icrl.envs.sample(config.environment, config.eval.seed, Split.EVAL, indices)


def command(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_model_that_prefers_one_action_has_the_regret_of_that_action(tmp_path):
    run = new_run(tmp_path, "eval.action=greedy", prefers=1.0)
    config = run.config()
    outcomes = {o.entrant.name: o for o in online.evaluate(config, icrl.checkpoint.load(run.path))}
    batch = environments(config)
    gaps = batch.means.max(axis=1, keepdims=True) - batch.means
    np.testing.assert_array_equal(outcomes["transformer"].suboptimality, np.repeat(gaps[:, :1], 12, axis=1))
    np.testing.assert_array_equal(outcomes["optimal"].suboptimality, 0)
    assert list(outcomes) == ["transformer", "linucb", "thompson", "empirical_mean", "uniform", "optimal"]


def test_sampling_follows_the_model_s_probabilities(tmp_path):
    run = new_run(tmp_path, prefers=1.0)
    config = run.config()
    results = evaluate_run(run, config)
    batch = environments(config)
    gaps = batch.means.max(axis=1, keepdims=True) - batch.means
    weights = np.exp([1.0, 0, 0, 0])
    expected = 12 * (gaps @ (weights / weights.sum()))
    found = results.algorithms["transformer"]
    # the environments are the same: what is left is the noise of the actions
    assert found.final_regret == pytest.approx(expected.mean(), abs=4 * np.sqrt(12 / 300) * gaps.std(axis=1).mean())
    assert abs(results.algorithms["uniform"].final_regret - 12 * gaps.mean()) < 0.2
    assert found.final_regret_se == pytest.approx(expected.std(ddof=1) / np.sqrt(300), rel=0.25)


def test_results_do_not_depend_on_the_batch_size(tmp_path):
    run = new_run(tmp_path)
    config, model = run.config(), icrl.checkpoint.load(run.path)
    whole, parts = (online.evaluate(config, model, batch=batch) for batch in (None, 77))
    for one, other in zip(whole, parts, strict=True):
        # float32 sums of another shape may flip an action that is drawn on the edge of its cell
        same = (one.suboptimality == other.suboptimality).all(axis=1)
        assert same.mean() >= (0.99 if one.entrant.algorithm is None else 1)


def test_imitation_of_a_known_policy(tmp_path):
    run = new_run(tmp_path, prefers=2.0)
    config = run.config()
    generate(config)
    reader = imitation.open_test_split(config)
    found = imitation.evaluate(config, icrl.checkpoint.load(run.path), reader, batch=16)
    zeros = reader.rows(slice(0, 50))["action"] == 0
    total = np.log(np.exp(2) + 3)
    expected = np.where(zeros, total - 2, total)
    assert found.trajectories == 50
    assert found.agreement == zeros.mean()
    np.testing.assert_allclose(found.log_loss.mean, expected.mean(), rtol=1e-6)
    np.testing.assert_allclose(found.log_loss_by_round.mean, expected.mean(axis=0), rtol=1e-6)

    # LinUCB is the reduced expert; it plays what was played but where float32 and float64 part
    gap = np.where(zeros, 2 - 2 * np.sqrt(np.exp(2 - total)), 2 - 2 * np.sqrt(np.exp(-total)))
    assert found.distance.trajectories == 50
    assert found.distance.kl.mean == pytest.approx(found.log_loss.mean, abs=0.02)
    assert found.distance.hellinger.mean == pytest.approx(np.sqrt(gap).mean(), abs=0.02)
    assert found.approximation is None

    optimal = imitation.evaluate(override(config, ["expert.label=optimal"]), icrl.checkpoint.load(run.path), reader)
    assert optimal.agreement == (reader.rows(slice(0, 50))["optimal_action"] == 0).mean()


def test_distance_to_the_reduced_expert_of_other_labels(tmp_path):
    run = new_run(tmp_path, prefers=0.0)  # uniform play
    config = run.config()
    generate(config)
    reader, model = imitation.open_test_split(config), icrl.checkpoint.load(run.path)
    dpt = imitation.evaluate(override(config, ["expert.label=optimal"]), model, reader)
    assert dpt.distance.trajectories == 32
    assert "importance samples" in dpt.distance.what
    # the posterior is nearer to uniform play than one action is
    assert 0.1 < dpt.distance.kl.mean < np.log(4) - 0.1

    expert = ["expert.label=approximate", "expert.estimator=posterior_mean"]
    approximate = imitation.evaluate(override(config, expert), model, reader)
    assert approximate.distance is None
    assert approximate.approximation.trajectories == 50
    assert 0 < approximate.approximation.mean < np.log(4)
    assert approximate.log_loss.mean == pytest.approx(np.log(4))


def test_the_command_writes_everything_and_repeating_it_changes_nothing(tmp_path):
    run = new_run(tmp_path)
    board = Board(run, keep=lambda record: True)
    board.scalars(7, {"train/loss": 1.5})
    board.close()
    first = command(run.path)
    assert first.exit_code == 0, first.output
    assert "imitation is not measured" in first.stderr
    results = load(run.results)
    assert results.trained_steps == 7
    assert results.imitation is None
    assert all((run.figures / f"regret.{suffix}").is_file() for suffix in ("png", "svg", "csv"))
    tags = [record["tags"] for record in read_records(run.metrics)]
    assert tags[0] == {"train/loss": 1.5}
    assert tags[1]["eval/regret_final"] == results.algorithms["transformer"].final_regret
    assert list(run.path.glob("events.*"))
    status = run.status()
    assert (status["state"], status["step"], status["expectations_met"]) == ("done", 7, True)

    content, modified = run.results.read_bytes(), run.results.stat().st_mtime_ns
    again = command(run.path)
    assert again.exit_code == 0
    assert again.stdout == first.stdout
    assert "holds the results of this evaluation already" in again.stderr
    assert run.results.stat().st_mtime_ns == modified

    # killed after the board was written, before the results were
    run.results.unlink()
    assert command(run.path).exit_code == 0
    assert run.results.read_bytes() == content
    assert command(run.path, "--force").exit_code == 0
    assert run.results.read_bytes() == content
    assert len(read_records(run.metrics)) == 2

    # a dataset that was not there before adds the imitation, and nothing else
    generate(run.config())
    assert command(run.path).exit_code == 0
    added = load(run.results)
    assert added.imitation is not None
    assert added.imitation.trajectories == 50
    assert added.algorithms == results.algorithms


def test_expectations_decide_the_exit_code_and_are_judged_anew(tmp_path):
    run = new_run(tmp_path)
    missed = command(run.path, "eval.expect={teacher_ratio: 1.0, uniform_ratio: 2.0}")
    assert missed.exit_code == 1
    results = load(run.results)
    assert [(e.what, e.passed) for e in results.expectations] == [("teacher_ratio", False), ("uniform_ratio", True)]
    ratio = results.algorithms["transformer"].final_regret / results.algorithms["linucb"].final_regret
    assert results.teacher_ratio.value == pytest.approx(ratio)
    assert f"expected <= 1.00 x teacher, obtained {ratio:.2f}: FAIL" in missed.stdout
    assert run.status()["expectations_met"] is False

    met = command(run.path, "eval.expect={teacher_ratio: 100.0, uniform_ratio: null}")
    assert met.exit_code == 0
    assert "already" in met.stderr
    assert load(run.results).algorithms == results.algorithms
    assert run.status()["expectations_met"] is True


def test_another_evaluation_replaces_the_results(tmp_path):
    run = new_run(tmp_path)
    command(run.path)
    assert command(run.path, "--eval.environments=40").exit_code == 0
    results = load(run.results)
    assert (results.environments, results.settings["environments"]) == (40, 40)
    assert json.loads((run.path / "run.json").read_text())["config_hash"] == results.config_hash


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train.steps=5", "eval.seed=1", "seed=2"], "error: 2 problems in the config"),
        (["train.steps=5"], "train.steps = '5': expected a key of the eval section"),
        (["evaluation=3"], "evaluation = '3': expected a key of the eval section"),
        (["eval.environments=1"], "expected at least 2"),
        (["eval.environment=10"], "eval.environment"),
        (["--fast"], "unknown option --fast"),
    ],
)
def test_other_overrides_are_refused(tmp_path, arguments, message):
    run = new_run(tmp_path)
    refused = command(run.path, *arguments)
    assert refused.exit_code == 2
    assert message in refused.stderr
    assert not run.results.exists()


def test_a_directory_that_is_no_trained_run_is_refused(tmp_path):
    nowhere = command(tmp_path / "nowhere")
    assert nowhere.exit_code == 2
    assert "expected a run directory (with run.json), got nothing there" in nowhere.stderr
    run = new_run(tmp_path)
    (run.path / "model.safetensors").unlink()
    run.set_status("stopped", step=500)
    untrained = command(run.path)
    assert untrained.exit_code == 2
    assert "has no trained model yet (its state is stopped at step 500)" in untrained.stderr


def test_what_cannot_be_judged_or_does_not_fit_is_refused_before_any_work(tmp_path):
    run = new_run(tmp_path, "expert.label=optimal")
    with pytest.raises(ConfigError, match=r"eval\.expect\.teacher_ratio"):
        check(run, override(run.config(), ["eval.expect.teacher_ratio=1.2"]))
    with pytest.raises(ValueError, match="another model or environment"):
        check(run, override(run.config(), ["model.layers=2"]))


def test_dry_run_and_print_config_write_nothing(tmp_path):
    run = new_run(tmp_path)
    before = sorted(path.name for path in run.path.iterdir())
    planned = command(run.path, "--dry-run", "eval.environments=99")
    assert planned.exit_code == 0
    assert "environments    99 of horizon 12" in planned.stdout
    assert "linucb (teacher)" in planned.stdout
    printed = command(run.path, "--print-config", "eval.environments=99")
    assert "environments: 99" in printed.stdout
    assert sorted(path.name for path in run.path.iterdir()) == before


def test_a_run_that_is_written_to_is_left_alone(tmp_path):
    run = new_run(tmp_path)
    with run.lock():
        refused = command(run.path)
    assert refused.exit_code == 2
    assert "is in use by process" in refused.stderr
    assert not run.results.exists()
