"""The run directory refuses to mix runs; the board's records survive a torn line and a resume."""

from __future__ import annotations

from pathlib import Path

import pytest

from icrl.board import Board, read_records
from icrl.config import Loaded, load
from icrl.run_dir import RunConflictError, RunDirectory


def loaded(root: Path, *overrides: str) -> Loaded:
    return load("configs/demo.yaml", [f"storage.root={root}", *overrides])


def test_the_same_config_resumes_and_another_gets_its_own_directory(tmp_path: Path) -> None:
    first = RunDirectory.open(loaded(tmp_path))
    assert RunDirectory.open(loaded(tmp_path)) == first
    assert RunDirectory.open(loaded(tmp_path, "seed=1")) != first
    assert first.config() == loaded(tmp_path).config
    for name in ("run.json", "config.yaml", "resolved.yaml", "env.json", "logs"):
        assert (first.path / name).exists()


def test_a_changed_config_is_refused_with_the_difference(tmp_path: Path) -> None:
    RunDirectory.open(loaded(tmp_path, "run.dir=mine"))
    with pytest.raises(RunConflictError, match=r"train.optimizer.lr: 0.\d+ -> 0.5"):
        RunDirectory.check(loaded(tmp_path, "run.dir=mine", "train.optimizer.lr=0.5"))


def test_an_occupied_directory_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(RunConflictError, match=r"thesis.tex"):
        RunDirectory.open(loaded(tmp_path, "run.dir=mine"))
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_a_crash_while_creating_is_mended(tmp_path: Path) -> None:
    run = RunDirectory.open(loaded(tmp_path))
    (run.path / "run.json").unlink()
    assert RunDirectory.open(loaded(tmp_path)).config() == run.config()


def test_two_writers_are_one_too_many(tmp_path: Path) -> None:
    run = RunDirectory.open(loaded(tmp_path))
    with run.lock(), pytest.raises(ValueError, match="in use by process"), run.lock():
        pass


def test_records_past_the_checkpoint_are_dropped_and_the_rest_kept(tmp_path: Path) -> None:
    run = RunDirectory.open(loaded(tmp_path))
    board = Board(run, keep=lambda record: True)
    for step in (10, 20, 30):
        board.scalars(step, {"train/loss": 1 / step})
    board.close()
    with run.metrics.open("ab") as stream:
        stream.write(b'{"step": 40, "ta')  # torn by a crash
    board = Board(run, keep=lambda record: record["step"] <= 20)
    board.scalars(25, {"train/loss": 0.5, "train/grad_norm": float("nan")})
    board.close()
    assert [(r["step"], r["tags"]) for r in read_records(run.metrics)] == [
        (10, {"train/loss": 0.1}),
        (20, {"train/loss": 0.05}),
        (25, {"train/loss": 0.5, "health/nonfinite": 1.0}),
    ]


def test_the_event_file_holds_the_same_numbers(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = RunDirectory.open(loaded(tmp_path))
    for last in (30, 20):
        board = Board(run, keep=lambda record, last=last: record["step"] < last)
        board.scalars(last, {"train/loss": float(last)})
        board.close()
    events = EventAccumulator(str(run.path))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(20, 20.0)]
    assert len(list(run.path.glob("events.*"))) == 1


def test_tags_belong_to_a_group(tmp_path: Path) -> None:
    board = Board(RunDirectory.open(loaded(tmp_path)), keep=lambda record: True)
    with pytest.raises(ValueError, match="expected a group"):
        board.scalars(1, {"loss": 1.0})
    board.close()
