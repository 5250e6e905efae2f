"""`python -m cluster sweep`: what it says before anything starts, in this process and without Ray."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from cluster.__main__ import app
from cluster.sweep_state import EARLY, SweepDirectory, numbered
from cluster.sweep_trial import TrialTask
from cluster.sweep_trials import expand
from icrl.run_dir import RunDirectory

TINY = """\
name: tiny
environment: {dim: 2, n_actions: 3, horizon: 10, noise_std: 0.5}
dataset: {train: 2000, validation: 256, test: 256, actors: 0}
model: {layers: 1, heads: 2, embed_dim: 16, mlp_dim: 32, tokens: merged}
train: {steps: 60, global_batch: 32, workers: 2, schedule: {warmup: 5}}
"""
SWEEP: dict[str, Any] = {"base": "tiny", "parameters": {"model.layers": {"values": [1, 2]}, "seed": {"values": [0, 1]}}}


@pytest.fixture
def sweep(tmp_path: Path) -> Any:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "tiny.yaml").write_text(TINY)

    def run(*arguments: str, code: int = 0, **keys: Any) -> str:
        path = tmp_path / "configs" / "grid.yaml"
        path.write_text(yaml.safe_dump(SWEEP | keys, sort_keys=False))
        command = ["sweep", str(path), f"storage.root={tmp_path / 'root'}", *arguments]
        result = CliRunner().invoke(app, command, env={"RAY_ADDRESS": None})
        assert result.exit_code == code, result.output
        return result.output

    return run


def test_a_dry_run_shows_every_trial_with_its_parameters_by_part_and_writes_nothing(sweep: Any, tmp_path: Path) -> None:
    lines = sweep("--dry-run").splitlines()
    assert lines[1].startswith("trials          4 (4 waiting)")
    head = lines.index(next(line for line in lines if line.startswith("trial ")))
    assert lines[head].split() == ["trial", "backbone", "embedding", "position", "read_out", "total"]
    rows = [line.split() for line in lines[head + 1 :]]
    assert [row[:3] for row in rows] == [[str(i), f"layers={i // 2 + 1}", f"seed={i % 2}"] for i in range(4)]
    for row in rows:
        *parts, total = (int(number.replace(",", "")) for number in row[3:])
        assert sum(parts) == total > 0
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"parameters": {"model.embed_dmi": {"values": [8, 16]}}}, "did you mean model.embed_dim?"),
        ({"parameters": {}}, "an empty grid"),
        ({"metric": {"name": "eval/regret"}}, "metric.name"),
        ({"ray": {"resources_per_trial": {"CPU": 10_000}}}, "no more than the nodes have"),
        ({"ray": {"resources_per_trial": {"GPU": 64}}}, "no more than the nodes have"),
        ({"base": "tinny"}, "did you mean tiny?"),
        ({"parameters": {"train.global_batch": {"values": [32, 33]}}}, "a multiple of train.workers (2)"),
    ],
)
def test_bad_input_is_exit_code_2_with_the_remedy_and_nothing_written(
    keys: dict[str, Any], expected: str, sweep: Any, tmp_path: Path
) -> None:
    output = sweep(code=2, **keys)
    assert expected in output
    assert "grid.yaml:" in output, "the place"
    assert not (tmp_path / "root").exists()


def test_a_changed_sweep_is_shown_and_not_run_until_it_is_accepted(sweep: Any, tmp_path: Path) -> None:
    from cluster.sweep_file import read_sweep

    sweep("--dry-run")
    file = read_sweep(tmp_path / "configs" / "grid.yaml", [f"storage.root={tmp_path / 'root'}"])
    place = SweepDirectory(tmp_path / "root" / "runs" / "grid")
    place.write(file, numbered(expand(file), None, "runs/grid"))
    before = place.record.read_bytes()
    grown = {"parameters": {"model.layers": {"values": [2, 3]}, "seed": {"values": [0, 1]}}}
    output = sweep(code=2, **grown)
    for line in ("new      trial 4: layers=3 seed=0", "gone     trial 0: layers=1 seed=0", "--accept-changes"):
        assert line in output
    assert place.record.read_bytes() == before
    assert not any((place.path / "trials").iterdir())
    assert "gone" not in sweep("--dry-run")


def test_what_stops_a_sweep_in_its_work_is_one_line(sweep: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device", "runs/grid/table.csv")

    monkeypatch.setattr("cluster.sweep_plan.carry_out", full)
    assert sweep(code=1).endswith("failed: [Errno 28] No space left on device: 'runs/grid/table.csv'\n")


def test_early_termination_asks_through_the_run_directory_and_remembers_earlier_sessions(
    sweep: Any, tmp_path: Path
) -> None:
    from cluster.sweep import _scheduler
    from cluster.sweep_file import read_sweep

    sweep("--dry-run", early_terminate={"type": "hyperband", "min_iter": 10, "eta": 2})
    file = read_sweep(tmp_path / "configs" / "grid.yaml", [f"storage.root={tmp_path / 'root'}"])
    trials = numbered(expand(file), None, "runs/grid")
    place = SweepDirectory(tmp_path / "root" / "runs" / "grid")
    place.write(file, trials)
    earlier = RunDirectory.open(trials[0].loaded)
    earlier.metrics.write_text('{"step": 10, "time": 0, "tags": {"train/validation_loss": 0.5}}\n')
    plan: Any = SimpleNamespace()
    tasks = [TrialTask(trial, plan, place, "s", {}, ("seed",)) for trial in trials[1:]]
    scheduler = _scheduler(file, tasks)

    def report(index: int, step: int, loss: float) -> str | None:
        RunDirectory.open(tasks[index].trial.loaded)
        trial = SimpleNamespace(trial_id=f"t{index}", config={"index": index})
        if trial.trial_id not in scheduler._trial_info:
            scheduler.on_trial_add(None, trial)
        answer = scheduler.on_trial_result(None, trial, {"step": step, "validation_loss": loss})
        assert answer == "CONTINUE", "Tune itself never stops a trial"
        return place.trial(tasks[index].trial.name).stop_requested()

    assert report(0, 10, 0.4) is None, "better than the one of the earlier session"
    assert report(1, 5, 9.0) is None, "not compared before min_iter"
    assert report(1, 10, 9.0) == EARLY
    assert report(0, 60, 9.0) is None, "a training that is through is not stopped"


def test_the_commands_of_the_documentation_are_commands() -> None:
    root = Path(__file__).resolve().parents[2]
    text = (root / "docs" / "sweeps.md").read_text()
    found = re.findall(r"^python -m cluster (sweep [^#\n]*)|`python -m cluster (sweep [^`]*)`", text, re.MULTILINE)
    commands = [first or second for first, second in found]
    assert len(commands) >= 4
    for command in commands:
        arguments = [*command.replace("configs/", f"{root}/configs/").split(), "--dry-run"]
        result = CliRunner().invoke(app, arguments, env={"RAY_ADDRESS": None})
        assert result.exit_code == 0, f"{command}\n{result.output}"
        assert "trials " in result.output


def test_the_file_in_the_documentation_is_a_sweep(tmp_path: Path) -> None:
    from cluster.sweep_file import read_sweep

    root = Path(__file__).resolve().parents[2]
    example = (root / "docs" / "sweeps.md").read_text().split("```yaml\n")[1].split("```")[0]
    (tmp_path / "configs").mkdir()
    for name in ("demo.yaml", "base"):
        (tmp_path / "configs" / name).symlink_to(root / "configs" / name)
    path = tmp_path / "configs" / "example.yaml"
    path.write_text(example)
    assert len(expand(read_sweep(path))) == 6


def test_trials_of_a_virtual_source_need_no_dataset(sweep: Any, tmp_path: Path) -> None:
    shown = sweep("dataset.source=virtual", "--dry-run")
    assert "datasets        0; missing 0 B" in shown
    words = [str(tmp_path / "configs" / "tiny.yaml"), f"storage.root={tmp_path / 'root'}", "dataset.source=virtual"]
    result = CliRunner().invoke(app, ["run", *words, "--dry-run"], env={"RAY_ADDRESS": None})
    assert result.exit_code == 0, result.output
    assert "dataset         virtual: 2,512 trajectories, computed when training asks for them" in result.output
    assert not (tmp_path / "root").exists()
