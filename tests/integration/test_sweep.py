"""`python -m cluster sweep` on Ray Tune, with real processes: the smoke sweep, kills, and trials that go wrong."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from cluster.sweep_table import TIMES
from icrl.files import locked

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("home")]

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SWEEP = """\
base: tiny
method: {method}
run_cap: 4
parameters:
  model: {{values: [{{layers: 1, embed_dim: 8, mlp_dim: 16}}, {{layers: 2, embed_dim: 16, mlp_dim: 32}}]}}
  train.optimizer.lr: {{values: [1e-3, 3e-3]}}
  train.workers: {{value: 1}}
"""


@pytest.fixture
def sweep_file(config: Path) -> Callable[[str], Path]:
    """A sweep of 2 x 2 trials of the tiny experiment; each trial has 60 steps and a checkpoint every 8."""
    folder = config.parent / "configs"
    folder.mkdir()
    config.rename(folder / "tiny.yaml")

    def write(text: str = SWEEP.format(method="grid")) -> Path:
        path = folder / "grid.yaml"
        path.write_text(text)
        return path

    return write


def table(directory: Path) -> list[dict[str, Any]]:
    """The rows without the times, as a reader of the Parquet file gets them."""
    rows = pq.read_table(directory / "table.parquet").to_pylist()
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def finished(directory: Path) -> list[Path]:
    return sorted(path.parent for path in directory.glob("trials/*/status.json") if '"done"' in path.read_text())


def training(directory: Path, step: int) -> Path | None:
    """A trial that has recorded this step and has not ended."""
    for metrics in directory.glob("trials/*/metrics.jsonl"):
        if metrics.parent not in finished(directory):
            lines = metrics.read_bytes().split(b"\n")[:-1]
            if lines and json.loads(lines[-1])["step"] >= step:
                return metrics.parent
    return None


def until(condition: Callable[[], object], process: Any, patience: float = 400) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert process.poll() is None, process.communicate()[0][-3000:]
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.05)


def descendants(process: Any, title: str) -> list[psutil.Process]:
    """Processes that a command started, and theirs, with this in their title."""
    return [child for child in psutil.Process(process.pid).children(recursive=True) if title in _title(child)]


def test_the_smoke_sweep_leaves_a_table_a_figure_and_one_dataset_and_is_quiet(commands: Any, tmp_path: Path) -> None:
    arguments = ("sweep", CONFIGS / "sweeps" / "smoke.yaml", f"storage.root={tmp_path}")
    output = commands.run("cluster", *arguments)
    directory = tmp_path / "runs" / "smoke"
    rows = table(directory)
    assert [row["state"] for row in rows] == ["done"] * 4
    assert [(row["model.embed_dim"], row["seed"]) for row in rows] == [(8, 0), (8, 1), (16, 0), (16, 1)]
    assert all(row["parameters/backbone"] > 0 and row["eval/test_log_loss"] > 0 for row in rows)
    best = min(rows, key=lambda row: row["train/validation_loss"])
    assert f"best            trial {best['trial']}: " in output
    assert str(directory / best["directory"]) in output
    assert output.splitlines()[-1].startswith("next            python -m eval ")
    assert output.splitlines()[-1].endswith(" eval.environments=2000 eval.seed=12346")
    assert len(list((tmp_path / "data").iterdir())) == 1, "the trials share their dataset"
    for name in ("table.csv", "sweep.json", "figures/capacity.png", "figures/capacity.svg", "figures/capacity.csv"):
        assert (directory / name).stat().st_size > 0, name
    assert not (directory / ".tune").exists()
    assert "Warning" not in output
    assert "(pid=" not in output
    assert len(output.splitlines()) < 40, output

    before = {path: path.stat().st_mtime_ns for path in directory.glob("trials/*/*.json")}
    commands.run("cluster", *arguments)
    assert {path: path.stat().st_mtime_ns for path in directory.glob("trials/*/*.json")} == before


@pytest.mark.slow
@pytest.mark.parametrize("method", ["grid", "random"])
def test_a_sweep_killed_again_and_again_ends_in_the_same_table(
    method: str, sweep_file: Any, commands: Any, tmp_path: Path
) -> None:
    file = sweep_file(SWEEP.format(method=method))
    commands.run("cluster", "sweep", file, f"storage.root={tmp_path / 'unkilled'}")
    expected = table(tmp_path / "unkilled" / "runs" / "grid")
    assert [row["state"] for row in expected] == ["done"] * 4

    arguments = ("cluster", "sweep", file, f"storage.root={tmp_path / 'killed'}")
    directory = tmp_path / "killed" / "runs" / "grid"
    process = commands.start(*arguments)
    until(lambda: training(directory, 10), process)
    process.kill()
    process.communicate(timeout=60)
    assert len(finished(directory)) < 4

    process = commands.start(*arguments)
    until(lambda: finished(directory) and descendants(process, "RayTrainWorker"), process)
    for worker in descendants(process, "RayTrainWorker"):
        os.kill(worker.pid, signal.SIGKILL)
    time.sleep(1)
    done = {path: (path / "results.json").stat().st_mtime_ns for path in finished(directory)}
    process.kill()
    process.communicate(timeout=60)

    commands.run(*arguments)
    assert {path: (path / "results.json").stat().st_mtime_ns for path in done} == done, "no finished trial runs again"
    assert table(directory) == expected


@pytest.mark.slow
def test_a_trial_whose_process_is_killed_starts_again_and_blocks_no_other(
    sweep_file: Any, commands: Any, tmp_path: Path
) -> None:
    process = commands.start("cluster", "sweep", sweep_file(), f"storage.root={tmp_path}")
    directory = tmp_path / "runs" / "grid"
    until(lambda: training(directory, 10), process)
    leads = descendants(process, "ImplicitFunc")
    assert leads, "a trial is led by a process of Tune's"
    for lead in leads:
        os.kill(lead.pid, signal.SIGKILL)
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output[-3000:]
    assert [row["state"] for row in table(directory)] == ["done"] * 4


@pytest.mark.slow
def test_trials_that_diverge_or_fail_are_marked_and_ctrl_c_is_resumed(
    sweep_file: Any, commands: Any, tmp_path: Path
) -> None:
    # a learning rate that diverges, and one trial whose run directory somebody else works on
    text = SWEEP.format(method="grid").replace("[1e-3, 3e-3]", "[1e-3, 1e30]").replace("run_cap: 4\n", "")
    arguments = ("cluster", "sweep", sweep_file(text), f"storage.root={tmp_path}", "train.clip=0")
    directory = tmp_path / "runs" / "grid"
    process = commands.start(*arguments)
    until(lambda: training(directory, 10), process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output[-3000:]
    assert "the same command resumes" in output
    states = [json.loads(path.read_text())["state"] for path in directory.glob("trials/*/status.json")]
    assert "training" not in states, "whatever was in training has a checkpoint"

    output = commands.run(*arguments)
    assert [row["state"] for row in table(directory)] == ["done", "diverged"] * 2
    assert "trial 1 diverged" in output


@pytest.mark.slow
def test_a_trial_that_is_behind_is_stopped_early_and_stays_so(sweep_file: Any, commands: Any, tmp_path: Path) -> None:
    # one at a time: the second trial, which hardly learns, meets the first one's record
    text = """\
base: tiny
parameters: {train.optimizer.lr: {values: [1e-2, 1e-9]}, train.workers: {value: 1}, train.validate_every: {value: 5}}
early_terminate: {type: hyperband, min_iter: 10, eta: 2}
ray: {max_concurrent: 1}
"""
    arguments = ("cluster", "sweep", sweep_file(text), f"storage.root={tmp_path}", "train.steps=400")
    output = commands.run(*arguments)
    assert "trial 1: lr=1e-09: early stop" in output
    good, bad = rows = table(tmp_path / "runs" / "grid")
    assert (good["state"], good["step"]) == ("done", 400)
    assert bad["state"] == "early"
    assert 10 <= bad["step"] < 400
    commands.run(*arguments)
    assert table(tmp_path / "runs" / "grid") == rows


@pytest.mark.slow
def test_a_trial_that_dies_too_often_fails_alone_and_is_retried_on_request(
    sweep_file: Any, commands: Any, tmp_path: Path
) -> None:
    text = """\
base: tiny
parameters: {seed: {values: [0, 1]}, train.workers: {value: 1}}
ray: {max_concurrent: 1, max_failures: 0}
"""
    directory = tmp_path / "runs" / "grid"
    arguments = ("sweep", sweep_file(text), f"storage.root={tmp_path}")
    process = commands.start("cluster", *arguments)
    until(lambda: training(directory, 10), process)
    for lead in descendants(process, "ImplicitFunc"):
        os.kill(lead.pid, signal.SIGKILL)
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 1, output[-3000:]
    assert output.splitlines()[-1] == "next            the same command with --retry-failed"
    first, second = table(directory)
    assert (first["state"], second["state"]) == ("failed", "done")
    assert "died" in first["error"]

    commands.run("cluster", *arguments, code=1)
    assert table(directory) == [first, second], "a failed trial is not run again unasked"
    commands.run("cluster", *arguments, "--retry-failed")
    assert [row["state"] for row in table(directory)] == ["done", "done"]


def test_a_dataset_that_another_trial_writes_is_waited_for(tmp_path: Path) -> None:
    import threading

    entered = threading.Event()

    def second() -> None:
        with locked(tmp_path / "lock", patience=30):
            entered.set()

    with locked(tmp_path / "lock"):
        thread = threading.Thread(target=second)
        thread.start()
        assert not entered.wait(0.5)
    assert entered.wait(5)
    thread.join()


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
