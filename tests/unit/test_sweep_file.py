"""The sweep grammar: what it accepts, what it refuses and where it says so, and the trials that come of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from cluster.sweep_file import Choice, is_sweep, quick_grid, read_sweep, split_values, without_ours
from cluster.sweep_trials import Trial, check_metric, directory, expand, text_of
from icrl.config import ConfigError, to_dict

CONFIGS = Path(__file__).resolve().parents[2] / "configs"

PARAMETER: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "minProperties": 1,
    "properties": {
        "value": {},
        "values": {"type": "array", "minItems": 1},
        "min": {"type": "number"},
        "max": {"type": "number"},
        "q": {"type": "number", "exclusiveMinimum": 0},
        "distribution": {
            "enum": [
                "constant", "categorical", "uniform", "int_uniform", "q_uniform", "log_uniform_values",
                "q_log_uniform_values",
            ]
        },
        "parameters": {"type": "object", "additionalProperties": {"$ref": "#/definitions/parameter"}},
    },
}  # fmt: skip
WANDB: dict[str, Any] = {
    "definitions": {"parameter": PARAMETER},
    "type": "object",
    "required": ["method", "parameters"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string"},
        "description": {"type": "string"},
        "method": {"enum": ["grid", "random"]},
        "run_cap": {"type": "integer", "minimum": 1},
        "metric": {
            "type": "object",
            "required": ["name"],
            "additionalProperties": False,
            "properties": {"name": {"type": "string"}, "goal": {"enum": ["minimize", "maximize"]}},
        },
        "early_terminate": {
            "type": "object",
            "required": ["type"],
            "additionalProperties": False,
            "properties": {
                "type": {"const": "hyperband"},
                "min_iter": {"type": "integer", "minimum": 1},
                "max_iter": {"type": "integer", "minimum": 1},
                "s": {"type": "integer", "minimum": 1},
                "eta": {"type": "number", "exclusiveMinimum": 1},
            },
        },
        "parameters": {
            "type": "object",
            "minProperties": 1,
            "additionalProperties": {"$ref": "#/definitions/parameter"},
        },
    },
}
"""W&B's documented grammar, as far as we speak it."""


@pytest.fixture
def write(tmp_path: Path) -> Any:
    (tmp_path / "configs" / "sweeps").mkdir(parents=True)
    (tmp_path / "configs" / "demo.yaml").write_text("name: demo\ntrain: {steps: 400, schedule: {warmup: 10}}\n")

    def written(text: str) -> Path:
        path = tmp_path / "configs" / "sweeps" / "s.yaml"
        path.write_text("base: demo\n" + text)
        return path

    return written


def trials_of(path: Path) -> list[Trial]:
    return expand(read_sweep(path))


def problems_of(path: Path) -> list[str]:
    def check() -> None:
        sweep = read_sweep(path)
        check_metric(sweep, expand(sweep))

    with pytest.raises(ConfigError) as caught:
        check()
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize("path", sorted((CONFIGS / "sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_sweep_is_whole_and_speaks_wandbs_grammar(path: Path) -> None:
    values = yaml.safe_load(path.read_text())
    jsonschema.validate(without_ours(values), WANDB)
    sweep = read_sweep(path)
    trials = expand(sweep)
    check_metric(sweep, trials)
    assert len({trial.hash for trial in trials}) == len(trials) >= 4
    assert is_sweep(path)
    assert not is_sweep(CONFIGS / "demo.yaml")


def test_a_grid_is_in_the_files_order_and_ties_what_stands_in_one_mapping(write: Any) -> None:
    trials = trials_of(
        write(
            "method: grid\nparameters:\n"
            "  model: {values: [{layers: 2, embed_dim: 16}, {layers: 4, embed_dim: 32}]}\n"
            "  train.optimizer.lr: {values: [1e-3, 3e-3]}\n"
            "  train.global_batch: {value: 64}\n"
        )
    )
    assert [trial.overrides for trial in trials] == [
        {"model.layers": layers, "model.embed_dim": dim, "train.optimizer.lr": lr}
        for layers, dim in ((2, 16), (4, 32))
        for lr in (1e-3, 3e-3)
    ]
    config = trials[2].loaded.config
    assert (config.model.layers, config.model.embed_dim, config.train.global_batch) == (4, 32, 64)
    assert text_of(trials[2].overrides) == "layers=4 embed_dim=32 lr=0.001"


def test_nested_parameters_and_integer_ranges_are_a_grid_too(write: Any) -> None:
    trials = trials_of(
        write("parameters:\n  model: {parameters: {layers: {min: 1, max: 3}}}\n  seed: {values: [0, 1]}\n")
    )
    assert [(t.overrides["model.layers"], t.overrides["seed"]) for t in trials] == [
        (layers, seed) for layers in (1, 2, 3) for seed in (0, 1)
    ]


def test_the_seed_of_a_trial_reaches_the_training(write: Any) -> None:
    assert [t.loaded.config.train.seed for t in trials_of(write("parameters: {seed: {values: [0, 7]}}\n"))] == [0, 7]


RANDOM = """\
method: random
run_cap: {cap}
parameters:
  train.optimizer.lr: {{min: 1e-4, max: 1e-2, distribution: log_uniform_values}}
  model.layers: {{min: 1, max: 4}}
  model.embed_dim: {{min: 8, max: 32, q: 4, distribution: q_uniform}}
  train.optimizer.weight_decay: {{min: 0.0, max: 0.1}}
"""


def test_draws_are_the_same_for_any_number_of_them_and_lie_in_their_ranges(write: Any) -> None:
    many = [trial.overrides for trial in trials_of(write(RANDOM.format(cap=40)))]
    assert many[:5] == [trial.overrides for trial in trials_of(write(RANDOM.format(cap=5)))]
    rates = [drawn["train.optimizer.lr"] for drawn in many]
    assert all(1e-4 <= rate <= 1e-2 for rate in rates)
    assert 12 <= sum(rate < 1e-3 for rate in rates) <= 28, "half of a log-uniform draw is below the geometric mean"
    assert {drawn["model.layers"] for drawn in many} == {1, 2, 3, 4}
    assert {drawn["model.embed_dim"] % 4 for drawn in many} == {0}
    assert max(drawn["train.optimizer.weight_decay"] for drawn in many) <= 0.1


def test_another_parameter_leaves_the_draws_of_the_others_alone(write: Any) -> None:
    fewer = trials_of(write(RANDOM.format(cap=6)))
    more = trials_of(write(RANDOM.format(cap=6) + "  train.clip: {min: 0.5, max: 2.0}\n"))
    assert [t.overrides["train.optimizer.lr"] for t in fewer] == [t.overrides["train.optimizer.lr"] for t in more]
    seeded = trials_of(write(RANDOM.format(cap=6) + "ray: {seed: 1}\n"))
    assert [t.overrides["train.optimizer.lr"] for t in fewer] != [t.overrides["train.optimizer.lr"] for t in seeded]


def test_a_draw_that_repeats_an_earlier_one_is_left_out(write: Any) -> None:
    trials = trials_of(write("method: random\nrun_cap: 9\nparameters: {seed: {values: [0, 1, 2]}}\n"))
    assert sorted(trial.overrides["seed"] for trial in trials) == [0, 1, 2]


def test_hyperband_is_said_in_either_of_wandbs_ways(write: Any) -> None:
    settings = read_sweep(
        write("early_terminate: {type: hyperband, max_iter: 270, s: 2}\nparameters: {seed: {values: [1]}}\n")
    )
    assert settings.config.early_terminate is not None
    assert settings.config.early_terminate.first == 30
    settings = read_sweep(
        write("early_terminate: {type: hyperband, min_iter: 50}\nparameters: {seed: {values: [1]}}\n")
    )
    assert settings.config.early_terminate is not None
    assert settings.config.early_terminate.first == 50


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("parameters: {model.embed_dmi: {values: [16, 32]}}", ["s.yaml:2", "did you mean model.embed_dim?"]),
        ("parameters: {train.optimizer.lr: {vales: [1]}}", ["s.yaml:2", "did you mean values?"]),
        ("method: gird\nparameters: {seed: {values: [0]}}", ["s.yaml:2", "did you mean grid?"]),
        ("metric: {name: eval/regret_finl}\nparameters: {seed: {values: [0]}}", ["did you mean eval/regret_final?"]),
        ("metric: {gaol: minimize}\nparameters: {seed: {values: [0]}}", ["s.yaml:2", "did you mean metric.goal?"]),
        ("parameters: {}", ["empty grid"]),
        ("method: grid", ["empty grid"]),
        ("parameters: {seed: {values: []}}", ["a list with at least one value"]),
        ("parameters: {seed: {values: [1, 1]}}", ["trials that differ"]),
        ("parameters: {dataset.actors: {values: [0, 1]}}", ["trials that differ"]),
        ("parameters: {train.optimizer.lr: {min: 1, max: 2.0}}", ["values with method grid", "method: random"]),
        ("method: random\nparameters: {train.clip: {min: 1, max: 2.5}}", ["run_cap", "the number of trials"]),
        ("method: random\nrun_cap: 2\nparameters: {train.clip: {min: 2, max: 1}}", ["above min (2)"]),
        (
            "method: random\nrun_cap: 2\nparameters: {train.clip: {min: 0, max: 1, distribution: log_uniform_values}}",
            ["above 0 with log_uniform_values"],
        ),
        (
            "method: random\nrun_cap: 2\nparameters: {train.clip: {min: 0, max: 1, distribution: log_unifrom_values}}",
            ["did you mean log_uniform_values?"],
        ),
        ("parameters: {run.dir: {values: [a, b]}}", ["the sweep places and names its trials"]),
        ("early_terminate: {type: hyperband}\nparameters: {seed: {values: [0]}}", ["min_iter, or max_iter with s"]),
        ("ray: {max_concurent: 2}\nparameters: {seed: {values: [0]}}", ["did you mean ray.max_concurrent?"]),
        ("parameters: {model: {values: [{heads: 5}, {heads: 4}]}}", ["s.yaml:2", "a divisor of embed_dim"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_place_and_its_remedy(text: str, expected: list[str], write: Any) -> None:
    said = problems_of(write(text))
    for part in expected:
        assert any(part in line for line in said), said


def test_every_problem_of_a_file_is_said_at_once(write: Any) -> None:
    said = problems_of(write("method: gird\nnmae: x\nparameters:\n  seed: {vales: [0]}\n  clip: {min: 3, max: 1}\n"))
    assert len(said) == 4
    assert sorted(line.partition(":")[2].partition(":")[0] for line in said) == ["2", "3", "5", "6"]


def test_a_base_that_is_not_there_is_named_with_the_nearest(write: Any) -> None:
    path = write("parameters: {seed: {values: [0]}}\n")
    path.write_text(path.read_text().replace("base: demo", "base: dmeo"))
    (said,) = problems_of(path)
    assert "s.yaml:1: base" in said
    assert "did you mean demo?" in said


def test_a_quick_grid_is_overrides_with_several_values() -> None:
    base = CONFIGS / "demo.yaml"
    sweep = quick_grid(base, ["model.embed_dim=16,32", "seed=0,1", "train.steps=500"])
    assert sweep.parameters == (Choice("model.embed_dim", (16, 32)), Choice("seed", (0, 1)))
    trials = expand(sweep)
    assert [list(trial.overrides.values()) for trial in trials] == [[16, 0], [16, 1], [32, 0], [32, 1]]
    assert {trial.loaded.config.train.steps for trial in trials} == {500}
    again = quick_grid(base, ["model.embed_dim=16,32", "seed=0,1", "train.steps=501"])
    assert directory(sweep, trials) == directory(sweep, expand(sweep))
    assert directory(sweep, trials) != directory(again, expand(again)), "another grid lies elsewhere"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["train.steps=500"], "at least one key with several values"),
        ([], "at least one key with several values"),
        (["model.embed_dmi=16,32"], "did you mean model.embed_dim?"),
        (["seed=0,1", "seed=2"], "no override of a parameter"),
    ],
)
def test_a_quick_grid_that_is_none_says_so(overrides: list[str], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected.replace("?", r"\?")):
        expand(quick_grid(CONFIGS / "demo.yaml", overrides))


def test_commas_inside_brackets_and_quotes_belong_to_the_value() -> None:
    assert split_values("1,[2,3],{a: 4, b: 5},'6,7'") == ["1", "[2,3]", "{a: 4, b: 5}", "'6,7'"]


def test_an_override_holds_for_every_trial_and_not_for_a_parameter(write: Any) -> None:
    path = write("parameters: {seed: {values: [0, 1]}}\n")
    assert {t.loaded.config.train.steps for t in expand(read_sweep(path, ["train.steps=77"]))} == {77}
    for wrong in ("seed=3", "train.steps=1,2"):
        with pytest.raises(ConfigError):
            read_sweep(path, [wrong])


def test_trials_share_all_but_what_varies(write: Any) -> None:
    first, second = trials_of(write("parameters: {model.layers: {values: [1, 2]}}\n"))
    one, two = to_dict(first.loaded.config), to_dict(second.loaded.config)
    one["model"]["layers"] = two["model"]["layers"] = 0
    assert one == two
    assert math.isfinite(first.loaded.config.train.optimizer.lr)
