"""The comparison of recipes: what it runs, and what it makes of the results."""

from __future__ import annotations

from pathlib import Path

from benchmarks.recipe import PROJECT, REFERENCE, Result, _overrides, summary, write_csv
from benchmarks.train import flops_per_trajectory
from icrl.config import load
from icrl.tokens import tokenizer_of


def result(recipe: str, seed: int, step: int, loss: float, *, last: bool = False) -> Result:
    return Result(recipe, seed, step, 128 * step, loss, last)


def test_the_project_gets_half_the_samples_and_both_the_same_evaluation() -> None:
    configs = {name: load(f"configs/recipe/{name}.yaml").config for name in (REFERENCE, PROJECT)}
    reference, project = configs[REFERENCE], configs[PROJECT]
    samples = {name: config.train.steps * config.train.global_batch for name, config in configs.items()}
    assert samples[PROJECT] * 2 == samples[REFERENCE] == 20_000 * 128
    assert (reference.environment, reference.model, reference.context) == (
        project.environment,
        project.model,
        project.context,
    )
    assert (reference.dataset.validation, reference.dataset.seed) == (project.dataset.validation, project.dataset.seed)
    train = reference.train
    assert (train.clip, train.schedule.kind, train.schedule.warmup) == (0.0, "constant", 0)
    assert (train.optimizer.lr, train.optimizer.weight_decay, reference.environment.horizon) == (1e-3, 1e-4, 50)


def test_fewer_steps_keep_the_part_of_the_warm_up(tmp_path: Path) -> None:
    own = load("configs/recipe/project.yaml", _overrides(tmp_path, PROJECT, 3, 400, [])).config.train
    assert (own.steps, own.schedule.warmup, own.seed) == (200, 10, 3)


def test_a_summary_says_when_the_reference_was_reached(tmp_path: Path) -> None:
    results = [
        result(REFERENCE, 0, 100, 1.0),
        result(REFERENCE, 0, 200, 0.8, last=True),
        result(PROJECT, 0, 50, 0.79),
        result(PROJECT, 0, 100, 0.75, last=True),
    ]
    found = summary(results)
    assert found["share_of_samples"] == {0: 0.25}
    assert found["passed"]
    assert not summary([*results[:3], result(PROJECT, 0, 100, 0.81, last=True)])["passed"]
    assert not summary(results[:2])["passed"]
    write_csv(tmp_path / "recipe.csv", results)
    assert (tmp_path / "recipe.csv").read_text().splitlines()[2] == "reference,0,200,25600,0.8,True"


def test_the_operations_of_a_step_are_those_of_its_matrices_and_attention() -> None:
    config = load("configs/paper/exp1.yaml").config
    tokens, width, inner, layers = 400, 32, 128, 8
    block = 4 * width * width + 2 * width * inner
    mixing = tokens * width  # scores and mix: twice half of the keys
    frame = width * (tokenizer_of(config.environment, config.model.tokens).width + config.environment.n_actions)
    assert flops_per_trajectory(config) == 6 * tokens * (layers * (block + mixing) + frame)
