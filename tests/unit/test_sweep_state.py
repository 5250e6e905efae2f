"""A sweep on disk: numbers that stay with their trials, changes, resources, and the figure's numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy import stats

from cluster import sweep_figure
from cluster.sweep_file import quick_grid
from cluster.sweep_plan import _ending, _refresh_so_far, _require_room
from cluster.sweep_resources import concurrency, places, require_places
from cluster.sweep_state import SweepDirectory, changes, definition, numbered, outcome
from cluster.sweep_table import ranked, sweep_rows, write_table
from cluster.sweep_trials import expand
from icrl.config import ConfigError, load
from icrl.run_dir import RunConflictError, RunDirectory

DEMO = Path(__file__).resolve().parents[2] / "configs" / "demo.yaml"


def sweep_of(*overrides: str) -> Any:
    sweep = quick_grid(DEMO, overrides)
    return sweep, expand(sweep)


def begun(*overrides: str) -> dict[str, Any]:
    sweep, trials = sweep_of(*overrides)
    return definition(sweep, numbered(trials, None, "runs/s"))


def test_a_trial_lies_under_its_number_and_its_hash() -> None:
    sweep, trials = sweep_of("seed=0,1")
    first, second = numbered(trials, None, "runs/s")
    assert second.loaded.config.run.dir == f"runs/s/trials/0001-{second.hash}"
    assert first.hash != second.hash
    assert changes(definition(sweep, [first, second]), definition(sweep, [first, second])) == []


def test_a_grown_grid_keeps_the_numbers_of_what_was_there_and_says_what_is_new() -> None:
    before = begun("model.layers=2,4", "seed=0,1")
    sweep, trials = sweep_of("model.layers=1,2,4", "seed=0,1")
    trials = numbered(trials, before, "runs/s")
    known = {entry["hash"]: entry["directory"] for entry in before["trials"]}
    assert {t.hash: t.name for t in trials if t.hash in known} == known
    assert sorted(t.number for t in trials if t.hash not in known) == [4, 5]
    said = changes(before, definition(sweep, trials))
    assert said == ["new      trial 4: layers=1 seed=0", "new      trial 5: layers=1 seed=1"]


def test_a_shrunk_grid_says_what_is_gone() -> None:
    before = begun("model.layers=1,2,4", "seed=0,1")
    sweep, trials = sweep_of("model.layers=2,4", "seed=0,1")
    said = changes(before, definition(sweep, numbered(trials, before, "runs/s")))
    assert said == ["gone     trial 0: layers=1 seed=0", "gone     trial 1: layers=1 seed=1"]


def test_a_changed_experiment_says_which_key_and_which_trials() -> None:
    before = begun("seed=0,1")
    sweep, trials = sweep_of("seed=0,1", "train.steps=900")
    said = changes(before, definition(sweep, numbered(trials, before, "runs/s")))
    assert said == [
        "changed  train.steps: 2000 -> 900 (every trial)",
        "changed  trial 0: seed=0 (runs again)",
        "changed  trial 1: seed=1 (runs again)",
    ]


def test_a_directory_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").touch()
    with pytest.raises(RunConflictError, match=r"precious\.txt"):
        SweepDirectory(tmp_path).read()
    with pytest.raises(ValueError, match=r"expected a sweep"):
        sweep_rows(tmp_path / "absent")


def test_rows_tell_how_each_trial_has_ended(tmp_path: Path) -> None:
    sweep, trials = sweep_of("seed=0,1,2,3", f"storage.root={tmp_path}")
    trials = numbered(trials, None, "runs/s")
    place = SweepDirectory(tmp_path / "runs" / "s")
    place.write(sweep, trials)
    runs = [RunDirectory.open(trial.loaded) for trial in trials[:3]]
    runs[0].set_status("diverged", step=7, error="loss is nan")
    runs[1].set_status("stopped", step=5)
    runs[1].request_stop("early_terminate")
    runs[2].set_status("training", step=3)
    runs[2].request_stop("SIGTERM")
    assert [outcome(run) for run in runs] == ["diverged", "early", "waiting"]
    rows = sweep_rows(place.path)
    assert [row["state"] for row in rows] == ["diverged", "early", "waiting", "waiting"]
    assert rows[0]["error"] == "loss is nan"
    assert [row["seed"] for row in rows] == [0, 1, 2, 3]
    write_table(place.path, rows)
    table = pq.read_table(place.path / "table.parquet")
    assert table.column("step").to_pylist() == [7, 5, 3, None]
    assert (
        (place.path / "table.csv").read_text().splitlines()[0].startswith("trial,seed,state,step,parameters/backbone")
    )


def test_one_unreadable_result_is_told_and_the_other_trials_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep, trials = sweep_of("seed=0,1", f"storage.root={tmp_path}")
    trials = numbered(trials, None, "runs/s")
    place = SweepDirectory(tmp_path / "runs" / "s")
    place.write(sweep, trials)
    run = RunDirectory.open(trials[0].loaded)
    run.set_status("done", step=7)
    run.results.write_text('{"torn')
    rows = sweep_rows(place.path)
    assert [row["state"] for row in rows] == ["done", "waiting"]
    assert "results.json" in rows[0]["error"]
    _refresh_so_far(place.path)
    assert (place.path / "table.csv").is_file()
    (place.path / "table.csv").unlink()
    (place.path / "table.csv").mkdir()  # refuses to be written, as a full disk does
    _refresh_so_far(place.path)
    assert "the sweep's table is not up to date: " in capsys.readouterr().out


def test_the_hint_at_the_end_of_a_sweep_is_the_command_that_helps() -> None:
    sweep, _ = sweep_of("seed=0,1")
    metric = sweep.config.metric.name

    def ending(*states: str, **more: Any) -> tuple[int, str | None]:
        rows = [{"trial": i, "state": s, "directory": f"trials/{i}", metric: 1.0} for i, s in enumerate(states)]
        return _ending(sweep, Path("runs/s"), [row | more for row in rows], seed=3)

    assert ending("done", "waiting") == (1, "the same command, which resumes")
    assert ending("done", "waiting", "failed") == (1, "the same command with --retry-failed")
    assert ending("done", "done") == (0, "python -m eval runs/s/trials/0 eval.environments=2000 eval.seed=4")
    assert ending("done", error="results.json cannot be read")[0] == 1
    assert ending("diverged") == (1, None)


def test_every_disk_of_a_sweep_is_asked_for_its_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Path, int]] = []
    monkeypatch.setattr("cluster.sweep_plan.require_free", lambda path, needed: asked.append((path, needed)))
    one, other, elsewhere = tmp_path / "a", tmp_path / "b", Path("/dev/shm/icrl-not-there")
    assert elsewhere.parent.stat().st_dev != tmp_path.stat().st_dev
    _require_room({one: 1, other: 2, elsewhere: 4})
    assert asked == [(one, 3), (elsewhere, 4)]


def test_ranks_by_the_goal_and_leaves_out_what_has_no_result() -> None:
    rows = [{"trial": i, "state": "done", "m": m} for i, m in enumerate((2.0, 1.0, None, 1.0))]
    rows.append({"trial": 4, "state": "failed", "m": 0.0})
    assert [row["trial"] for row in ranked(rows, "m", "minimize")] == [1, 3, 0]
    assert [row["trial"] for row in ranked(rows, "m", "maximize")] == [0, 1, 3]


def test_resources_that_no_node_can_give_are_refused() -> None:
    sweep, _ = sweep_of("seed=0,1")
    nodes = [{"CPU": 4.0}, {"CPU": 3.0, "GPU": 1.0}]
    assert places({"CPU": 2.0}, nodes) == 3
    assert places({"CPU": 1.0, "GPU": 1.0}, nodes) == 1
    assert concurrency(sweep, 1, {"CPU": 1.0}, nodes) == 7
    require_places(sweep, 3, {"CPU": 2.0}, nodes)
    with pytest.raises(ConfigError, match=r"8 CPUs a trial.*4 CPUs; 3 CPUs and 1 GPUs"):
        require_places(sweep, 4, {"CPU": 2.0}, nodes)
    with pytest.raises(ConfigError, match=r"resources_per_trial\.GPU"):
        require_places(sweep, 2, {"CPU": 1.0, "GPU": 1.0}, nodes)


def rows_of(losses: dict[int, list[float]]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for capacity, values in losses.items():
        for seed, loss in enumerate(values):
            row = {"trial": len(rows), "model.embed_dim": capacity // 100, "seed": seed, "state": "done"}
            rows.append(
                row | {"parameters/backbone": capacity, "eval/test_log_loss": loss, "eval/teacher_ratio": 1 + loss}
            )
    return rows


def test_the_figures_points_are_means_over_seeds_with_their_t_interval(tmp_path: Path) -> None:
    losses = {400: [0.9, 0.7, 0.8], 1600: [0.5, 0.45, 0.4]}
    varied = ["model.embed_dim", "seed"]
    found = sweep_figure.points(rows_of(losses), varied, "eval/test_log_loss")
    assert [(p.capacity, p.trials) for p in found] == [(400, (0, 1, 2)), (1600, (3, 4, 5))]
    for point in found:
        values = losses[point.capacity]
        low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
        assert point.half is not None
        assert (point.mean - point.half, point.mean + point.half) == pytest.approx((low, high))
    alone = sweep_figure.points(rows_of({400: [0.9]}), varied, "eval/test_log_loss")
    assert alone[0].half is None

    png = sweep_figure.draw(rows_of(losses), varied, "eval/test_log_loss", load(DEMO).config, "s", tmp_path)
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert sorted(first) == ["capacity.csv", "capacity.png", "capacity.svg"]
    assert png.name == "capacity.png"
    sweep_figure.draw(rows_of(losses), varied, "eval/test_log_loss", load(DEMO).config, "s", tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first, "the same rows, the same bytes"
    assert len(first["capacity.csv"].splitlines()) == 1 + 2 * 2


def test_what_else_varies_makes_a_series_of_its_own() -> None:
    rows = [row | {"train.optimizer.lr": lr} for lr in (1e-3, 3e-3) for row in rows_of({400: [0.9, 0.8]})]
    found = sweep_figure.points(rows, ["model.embed_dim", "train.optimizer.lr", "seed"], "eval/test_log_loss")
    assert [(p.series, p.model, len(p.values)) for p in found] == [
        ("lr=0.001", "embed_dim=4", 2),
        ("lr=0.003", "embed_dim=4", 2),
    ]


def test_the_validation_loss_chooses_and_the_test_loss_is_drawn(tmp_path):
    rows = [row | {"train/validation_loss": 2.0} for row in rows_of({400: [0.9, 0.8], 900: [0.7, 0.6]})]
    varied = ["model.embed_dim", "seed"]
    sweep_figure.draw(rows, varied, "train/validation_loss", load(DEMO).config, "s", tmp_path)
    assert "validation" not in (tmp_path / "capacity.csv").read_text()
    for row in rows:
        row["eval/test_log_loss"] = None
    sweep_figure.draw(rows, varied, "train/validation_loss", load(DEMO).config, "s", tmp_path)
    assert "train/validation_loss" in (tmp_path / "capacity.csv").read_text()
