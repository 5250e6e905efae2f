"""`python -m cluster run`: generation, training under Ray Train and evaluation as one job, with real processes."""

from __future__ import annotations

import contextlib
import json
import os
import random
import secrets
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

from cluster.__main__ import app
from icrl.board import read_records
from icrl.cli import absolute_root
from icrl.config import load
from icrl.run_dir import RunDirectory
from icrl.store import SplitReader, dataset_path

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("home")]


def only_run(root: Path) -> Path:
    (run,) = (root / "runs").iterdir()
    return run


def recorded(root: Path, step: int) -> bool:
    for metrics in root.glob("runs/*/metrics.jsonl"):
        steps = [json.loads(line)["step"] for line in metrics.read_bytes().split(b"\n")[:-1]]
        return bool(steps) and steps[-1] >= step
    return False


def family(process: psutil.Process) -> list[psutil.Process]:
    """The process and everything it started, Ray's daemons and workers too."""
    return [process, *process.children(recursive=True)]


def until(condition: Callable[[], object], patience: float = 120) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.1)


@pytest.fixture
def job(config: Path, tmp_path: Path) -> list[str]:
    """The arguments of the job; its dataset is made by two Ray actors."""
    return [str(config), f"storage.root={tmp_path / 'root'}", "dataset.actors=2"]


def test_one_command_survives_the_kill_of_a_worker_and_writes_the_whole_run_directory(
    job: list[str], config: Path, tmp_path: Path, commands: Any, lasting_records: Any
) -> None:
    root = tmp_path / "root"
    process = commands.start("cluster", "run", *job)
    until(lambda: recorded(root, 20) or process.poll() is not None)
    workers = [p for p in family(psutil.Process(process.pid)) if "RayTrainWorker" in " ".join(p.cmdline())]
    assert workers, "training is at work"
    own = {p.pid for p in family(psutil.Process(process.pid))}
    listening = {c.laddr.ip for c in psutil.net_connections() if c.status == "LISTEN" and c.pid in own}
    assert {ip.removeprefix("::ffff:") for ip in listening} == {"127.0.0.1"}, "no port is open to other machines"
    os.kill(workers[0].pid, signal.SIGKILL)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-3000:]

    run = only_run(root)
    for name in (
        "run.json", "config.yaml", "resolved.yaml", "env.json", "status.json", "metrics.jsonl", "results.json",
        "model.safetensors", "model.json", "figures/regret.png", "figures/regret.svg", "figures/regret.csv",
    ):  # fmt: skip
        assert (run / name).stat().st_size > 0, name
    lines = output.splitlines()
    assert any(line.startswith("transformer ") for line in lines)
    assert f"tensorboard --logdir {run}" in output
    assert lines[-1].startswith("next")
    assert SplitReader(dataset_path(load(config, job[1:]).config), "train").n == 2000

    # the same training hosted without Ray, never killed, gives the same bits
    plain = tmp_path / "plain"
    commands.run("data_gen", config, f"storage.root={plain}")
    commands.run("train", config, f"storage.root={plain}")
    assert (run / "model.safetensors").read_bytes() == (only_run(plain) / "model.safetensors").read_bytes()
    trained = [(step, tags) for step, tags in lasting_records(run) if not any(t.startswith("eval/") for t in tags)]
    assert trained == lasting_records(only_run(plain))

    # and repeating the command does nothing twice
    before = (run / "results.json").read_bytes()
    commands.run("cluster", "run", *job)
    assert (run / "results.json").read_bytes() == before


OFTEN = ("train.checkpoint_every=2", "train.log_every=1")


def chance() -> random.Random:
    """Drawn anew each time; a test that fails shows the seed, and KILL_SEED repeats it."""
    seed = int(os.environ.get("KILL_SEED", secrets.randbelow(2**32)))
    print(f"KILL_SEED={seed}")
    return random.Random(seed)


@pytest.fixture
def require_undisturbed_bits(
    config: Path, tmp_path: Path, commands: Any, lasting_records: Any, event_series: Any
) -> Callable[[Path, list[str]], None]:
    """Weights, the last checkpoint, metrics and TensorBoard series are those of a run without Ray or kills."""

    def compare(run: Path, options: list[str]) -> None:
        plain = tmp_path / "plain"
        commands.run("data_gen", config, f"storage.root={plain}")
        commands.run("train", config, f"storage.root={plain}", *options)
        expected = only_run(plain)
        newest = sorted((expected / "checkpoints").iterdir())[-1].name
        checkpoint = [f"checkpoints/{newest}/{name}" for name in ("engine.safetensors", "progress.json")]
        for name in ("model.safetensors", *checkpoint):
            assert (run / name).read_bytes() == (expected / name).read_bytes(), name
        trained = [(step, tags) for step, tags in lasting_records(run) if not any(t.startswith("eval/") for t in tags)]
        assert trained == lasting_records(expected)
        curves = {tag: points for tag, points in event_series(run).items() if not tag.startswith("eval/")}
        assert curves == event_series(expected)

    return compare


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3])
def test_kill_9_of_workers_at_random_steps_ends_in_the_bits_of_a_run_without_ray_that_nothing_disturbed(
    stage: int, job: list[str], tmp_path: Path, commands: Any, require_undisturbed_bits: Any
) -> None:
    """Ray starts them again by itself; a checkpoint every other step, so that one is in flight when a kill falls."""
    rng = chance()
    options = [f"train.zero_stage={stage}", *OFTEN]
    root = tmp_path / "root"
    process = commands.start("cluster", "run", *job, *options)
    for first in (5, 35):
        step = first + rng.randrange(15)
        until(lambda step=step: recorded(root, step) or process.poll() is not None)
        workers = [p for p in family(psutil.Process(process.pid)) if "RayTrainWorker" in " ".join(p.cmdline())]
        assert workers, "training is at work"
        os.kill(rng.choice(workers).pid, signal.SIGKILL)
        psutil.wait_procs(workers, timeout=60)
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output[-3000:]

    run = only_run(root)
    require_undisturbed_bits(run, options)
    assert not list(run.rglob("*.pkl")), "what Ray wrote for itself is gone"
    assert not (run / ".ray").exists()


def test_ctrl_c_stops_after_a_checkpoint_leaves_no_process_and_the_same_command_goes_on(
    job: list[str], tmp_path: Path, commands: Any
) -> None:
    root = tmp_path / "root"
    process = commands.start("cluster", "run", *job)
    until(lambda: recorded(root, 10) or process.poll() is not None)
    started = family(psutil.Process(process.pid))
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output[-3000:]
    psutil.wait_procs(started, timeout=20)
    assert [p for p in started if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []
    status = json.loads((only_run(root) / "status.json").read_text())
    assert status["state"] == "stopped"
    assert f"stopped at step {status['step']}" in output

    commands.run("cluster", "run", *job)
    assert json.loads((only_run(root) / "status.json").read_text())["state"] == "done"


def test_kill_9_of_the_driver_loses_nothing(job: list[str], tmp_path: Path, commands: Any) -> None:
    root = tmp_path / "root"
    process = commands.start("cluster", "run", *job)
    until(lambda: recorded(root, 20) or process.poll() is not None)
    process.kill()
    process.communicate(timeout=60)
    commands.run("cluster", "run", *job)
    records = [json.loads(line) for line in (only_run(root) / "metrics.jsonl").read_text().splitlines()]
    steps = [record["step"] for record in records if "train/loss" in record["tags"]]
    assert steps == list(range(5, 61, 5)), "each record once, in order"


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3])
def test_kill_9_of_the_driver_at_random_steps_ends_in_the_bits_of_a_run_without_ray_that_nothing_disturbed(
    stage: int, job: list[str], tmp_path: Path, commands: Any, require_undisturbed_bits: Any
) -> None:
    """The same command, three times: a checkpoint every other step, so that one is in flight when a kill falls."""
    rng = chance()
    options = [f"train.zero_stage={stage}", *OFTEN]
    root = tmp_path / "root"
    for first in (5, 35):
        process = commands.start("cluster", "run", *job, *options)
        step = first + rng.randrange(15)
        until(lambda step=step, process=process: recorded(root, step) or process.poll() is not None, 240)
        time.sleep(rng.uniform(0, 0.05))
        assert process.poll() is None, process.communicate()[0]
        process.kill()
        process.communicate(timeout=60)
    commands.run("cluster", "run", *job, *options)
    require_undisturbed_bits(only_run(root), options)


def test_a_missed_expectation_is_an_exit_code(job: list[str], commands: Any) -> None:
    output = commands.run("cluster", "run", *job, "train.steps=6", "eval.expect.teacher_ratio=0.5", code=1)
    assert "expected <= 0.50 x teacher" in output
    assert "FAIL" in output


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.stpes=3", "did you mean train.steps?"),
        ("environment.horizon=0", "at least 1"),
        ("model.heads=5", "a divisor of embed_dim"),
        ("context=[]", "at least one algorithm"),
        ("train.global_batch=33", "a multiple of train.workers (2)"),
        ("model.preset=theory", "embed_dim"),
        ("dataset.train=10000000000", "its disk has"),
        ("expert.label=optimal eval.expect.teacher_ratio=1.2", "teacher"),
        ("environment.noise_std=0 eval.baselines=[thompson]", "expected a positive noise_variance"),
        ("storage.root=s3://bucket/x", "a directory on a local or mounted disk"),
        ("storage.root=/etc/passwd", "is a file, not a directory"),
        ("dataset.train=1e15", "at most"),
        ("model.embed_dim=1000000", "at most"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2_with_nothing_written(
    override: str, expected: str, job: list[str], tmp_path: Path
) -> None:
    result = CliRunner().invoke(app, ["run", *job, *override.split()])
    assert result.exit_code == 2, result.output
    assert expected in result.output
    assert not (tmp_path / "root").exists()


def test_a_place_that_holds_something_else_is_refused_and_left_as_it_was(job: list[str], tmp_path: Path) -> None:
    other = tmp_path / "thesis"
    (other / "deep").mkdir(parents=True)
    for name in ("chapter.tex", ".hidden.partial", "deep/.download.partial"):
        (other / name).write_text("mine")
    for override in (f"dataset.path={other}", f"run.dir={other}"):
        result = CliRunner().invoke(app, ["run", *job, override])
        assert result.exit_code == 2, result.output
        assert "chapter.tex" in result.output
    assert sorted(path.name for path in other.rglob("*")) == [
        ".download.partial",
        ".hidden.partial",
        "chapter.tex",
        "deep",
    ]
    assert not (tmp_path / "root").exists()


def test_a_second_command_on_a_run_is_refused_at_once(job: list[str]) -> None:
    with RunDirectory.open(absolute_root(load(job[0], job[1:]))).lock():
        result = CliRunner().invoke(app, ["run", *job])
    assert result.exit_code == 2
    assert "is in use by process" in result.output


@pytest.mark.slow
@pytest.mark.parametrize("small_disk", ["8m"], indirect=True)
def test_a_disk_that_fills_up_ends_the_job_with_its_words_and_the_same_command_goes_on(
    small_disk: Path, config: Path, tmp_path: Path, commands: Any
) -> None:
    run = RunDirectory(small_disk / "runs" / "x")
    words = ["cluster", "run", config, f"storage.root={tmp_path}", f"run.dir={run.path}", "dataset.source=virtual"]
    words += ["train.steps=2000", "train.validate_every=2000"]
    process = commands.start(*words)
    until(lambda: any(record["step"] >= 40 for record in read_records(run.metrics)))
    ballast = small_disk / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(512))
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 1, output
    assert "No space left on device" in output, output[-3000:]
    ballast.unlink()
    commands.run(*words)
    assert run.status()["state"] == "done"
