"""Configs: inheritance, overrides, identity, and one message that holds every problem with its place."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from icrl.config import Config, ConfigError, LinUCBConfig, config_hash, difference, from_dict, load, to_dict

SHIPPED = sorted(Path("configs").rglob("*.yaml"))


def write(folder: Path, text: str, name: str = "x.yaml") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def problems(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize("path", [p for p in SHIPPED if p.parent.name not in ("base", "sweeps")], ids=str)
def test_every_shipped_config_loads(path: Path) -> None:
    config = load(path).config
    assert from_dict(to_dict(config), "again") == config


def test_later_defaults_win_and_the_file_wins_over_them(tmp_path: Path) -> None:
    root = tmp_path / "configs"
    write(root, "environment: {dim: 2, n_actions: 3}\nseed: 1\n", "base/a.yaml")
    write(root, "environment: {dim: 4}\n", "base/b.yaml")
    path = write(root, "defaults: [base/a, base/b]\nname: child\nseed: 7\n")
    config = load(path).config
    assert (config.environment.dim, config.environment.n_actions, config.seed) == (4, 3, 7)
    assert config.train.seed == 7, "train.seed follows seed"
    assert load(path, ["train.seed=9"]).config.train.seed == 9


def test_every_problem_at_once_with_its_line(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "name: x\n"
        "environment: {horizon: 0, dimm: 3}\n"
        "model: {heads: 5, embed_dim: 32}\n"
        "train:\n"
        "  stepss: 10\n"
        "  optimizer: {lr: fast}\n"
        "context: []\n",
    )
    found = "\n".join(problems(path))
    for expected in (
        f"{path}:2: environment.horizon = 0: expected at least 1",
        "did you mean environment.dim?",
        f"{path}:3: model.heads = 5: expected a divisor of embed_dim (32); take heads=4",
        "did you mean train.steps?",
        f"{path}:6: train.optimizer.lr = 'fast': expected a number",
        f"{path}:7: context = []: expected at least one algorithm",
    ):
        assert expected in found


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.stpes=3", "did you mean train.steps?"),
        ("train.steps=1,2", "several values are a sweep"),
        ("train.steps", "expected key=value"),
        ("environment.n_actions=yes", "expected an integer"),
        ("eval.baselines=[lincub]", "did you mean linucb?"),
        ("context=[{algorithm: linucb, weight: 0}]", "at least one weight above 0"),
        ("model.heads=5", "a divisor of embed_dim"),
        ("environment.horizon=0", "at least 1"),
        ("environment.noise_std=.nan", "a finite number"),
        ("name='${oc.env:HOME}'", "${oc.env:ICRL_...}"),
        ("train.global_batch=400000", "at most dataset.train"),
    ],
)
def test_bad_overrides_say_what_to_do(override: str, expected: str) -> None:
    assert expected in "\n".join(problems(Path("configs/demo.yaml"), override))


FRESH = "environment.action_set=fresh"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            [FRESH, "context=[{algorithm: empirical_mean}]"],
            "context[0].algorithm = 'empirical_mean': expected uniform, optimal, linucb or thompson with",
        ),
        ([FRESH, "eval.baselines=[epsilon_greedy]"], "set environment.action_set=fixed"),
        (
            [FRESH, "context=[{algorithm: mixture, components: [{algorithm: linucb}, {algorithm: empirical_mean}]}]"],
            "context[0].components[1].algorithm = 'empirical_mean'",
        ),
        ([FRESH, "dataset.materialise=[theta,means]"], "expected no means with environment.action_set = fresh"),
        (
            ["environment.noise=bernoulli", "context=[{algorithm: thompson}]"],
            "context[0].noise_variance = None: expected a positive noise_variance where environment.noise = bernoulli",
        ),
        (
            ["environment.noise_std=0", "eval.baselines=[thompson]"],
            "expected a positive noise_variance where environment.noise_std = 0; set it",
        ),
    ],
)
def test_what_an_environment_makes_no_sense_of(overrides: list[str], expected: str) -> None:
    path = Path("configs/demo.yaml")
    found = problems(path, "eval.baselines=null", *overrides)
    assert len(found) == 1
    assert expected in found[0]
    environment = [override for override in overrides if override.startswith("environment")]
    baselines = [b.algorithm for b in load(path, [*environment, "eval.baselines=null"]).config.baselines()]
    assert baselines[0] == "linucb", "the defaults suit every environment"
    assert ("empirical_mean" in baselines) == (FRESH not in overrides)


def test_overrides_reach_into_lists_and_accept_dashes() -> None:
    config = load("configs/demo.yaml", ["context[0].weight=0.5", "--train.optimizer.lr=3e-4", "train.steps=1e4"]).config
    assert config.context[0].weight == 0.5
    assert config.train.optimizer.lr == 3e-4
    assert config.train.steps == 10_000


def test_defaults_stay_under_the_config_root(tmp_path: Path) -> None:
    root = tmp_path / "configs"
    write(tmp_path, "seed: 1\n", "outside.yaml")
    assert "expected a file under" in problems(write(root, "defaults: [../outside]\n"))[0]
    assert "no file that includes itself" in problems(write(root, "defaults: [x]\n"))[0]


def test_yaml_errors_have_a_line(tmp_path: Path) -> None:
    assert (
        "x.yaml:2" in problems(write(tmp_path, "a: 1\nb: [1,\n"))[0] + problems(write(tmp_path, "a: 1\nb: {1: ]\n"))[0]
    )


def test_identity_ignores_where_and_how_fast() -> None:
    base = load("configs/demo.yaml").config
    for same in (
        "storage.root=/elsewhere",
        "dataset.actors=3",
        "run.dir=here",
        "dataset.path=there",
        "eval.environments=7",
    ):
        assert config_hash(load("configs/demo.yaml", [same]).config) == config_hash(base)
    for other in ("seed=1", "train.steps=1000", "environment.dim=4"):
        assert config_hash(load("configs/demo.yaml", [other]).config) != config_hash(base)


def test_difference_names_each_key() -> None:
    old, new = Config(), Config(seed=3, name="x")
    assert difference(to_dict(old), to_dict(new)) == ["name: experiment -> x", "seed: 0 -> 3"]


def test_sections_check_themselves_in_python_too() -> None:
    with pytest.raises(ConfigError, match="above 0"):
        LinUCBConfig(ridge=0.0)


def test_teacher_is_the_single_context_algorithm() -> None:
    base = load("configs/demo.yaml")
    assert base.config.teacher() == base.config.context[0].algorithm
    two = "context=[{algorithm: linucb}, {algorithm: uniform}]"
    assert load("configs/demo.yaml", [two]).config.teacher() is None
    assert load("configs/demo.yaml", ["expert.label=optimal"]).config.teacher() is None


def test_the_config_layer_is_light() -> None:
    heavy = "{'torch', 'ray', 'deepspeed', 'zarr', 'numba', 'numpy'}"
    code = f"import sys, icrl.config; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
