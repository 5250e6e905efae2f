"""What ends a training before its time: numbers that are not finite, a rank that hangs, a stop in mid-validation."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from icrl.board import read_records, recorded_outcome
from icrl.config import load
from icrl.run_dir import RunDirectory
from train.dataset import TrajectoryStream
from train.loop import open_dataset

Records = Callable[[Path], list[tuple[int, dict[str, Any]]]]


def only_run(root: Path) -> Path:
    (run,) = (root / "runs").iterdir()
    return run


def reached(root: Path, step: int) -> bool:
    """Whether a run under root has recorded this step."""
    return any(record["step"] >= step for path in root.glob("runs/*/metrics.jsonl") for record in read_records(path))


def status(root: Path) -> dict[str, Any]:
    return RunDirectory(only_run(root)).status()


def until(condition: Callable[[], bool], patience: float = 240) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.05)


def test_a_batch_that_diverges_is_recorded_and_not_taken(config: Path, tmp_path: Path, commands: Any) -> None:
    words = [f"storage.root={tmp_path}", "train.optimizer.lr=1e30", "train.clip=0", "train.schedule.warmup=0"]
    words += ["train.schedule.kind=constant", "train.log_every=1", "dataset.source=virtual", "train.workers=2"]
    output = commands.run("train", config, *words, code=1)
    run = RunDirectory(only_run(tmp_path))
    found = json.loads((run.path / "diverged.json").read_text())
    state = run.status()
    assert (state["state"], state["step"]) == ("diverged", found["step"])
    assert found["reason"] in state["error"]
    assert "before the update" in output
    assert str(run.path / "diverged.json") in output

    loaded = load(config, words).config
    stream = TrajectoryStream(open_dataset(loaded)["train"], loaded.environment, global_batch=32, seed=0)
    assert found["trajectories"] == stream.indices(found["step"]).tolist()
    assert found["finite_data_of_rank"] == [True, True]
    assert len(found["loss_of_rank"]) == 2

    last = read_records(run.metrics)[-1]
    assert (last["step"], last["tags"]) == (found["step"] + 1, {"health/nonfinite": 1.0})
    assert recorded_outcome(run) == "FAILURE"
    assert all(math.isfinite(v) for record in read_records(run.metrics) for v in record["tags"].values())


RANK = """
import os
import sys

import train.loop
from icrl.config import load
from train.dataset import TrajectoryStream
from train.launch import StopFlag, run_rank

own = TrajectoryStream.batch


def failing(stream, step):
    if os.environ["RANK"] == os.environ["VICTIM"] and step == 7:
        raise OSError(5, "Input/output error", "/mnt/dataset/shard")
    return own(stream, step)


if os.environ["VICTIM"] == "nan":
    train.loop.validation_loss = lambda *arguments, **options: float("nan")
TrajectoryStream.batch = failing
sys.exit(run_rank(load(sys.argv[1], sys.argv[2:]), StopFlag()))
"""
"""A rank as `python -m train` starts it, in which one thing goes wrong."""


def ranks(victim: str, config: Path, root: Path) -> list[tuple[int, str]]:
    """Exit codes and outputs of two ranks that train together."""
    words = [str(config), f"storage.root={root}", "dataset.source=virtual", "train.log_every=1"]
    shared = {"WORLD_SIZE": "2", "ICRL_MEETING": str(root / "meeting"), "VICTIM": victim, "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, *words],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "GLOO_SOCKET_IFNAME": "lo"},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in range(2)
    ]
    outputs = [rank.communicate(timeout=240)[0] for rank in started]
    return [(rank.returncode, output) for rank, output in zip(started, outputs, strict=True)]


@pytest.mark.parametrize("victim", [0, 1])
def test_an_error_of_one_rank_is_said_by_it_once_and_kept(victim: int, config: Path, tmp_path: Path) -> None:
    found = ranks(str(victim), config, tmp_path)
    error = "[Errno 5] Input/output error: '/mnt/dataset/shard'"
    assert [code for code, _ in found] == [1, 1], found
    assert f"failed: {error}" in found[victim][1]
    assert "failed: " not in found[1 - victim][1], "the other has nothing to add"
    assert status(tmp_path)["state"] == "failed"
    assert status(tmp_path)["error"].endswith(error)


def test_a_validation_that_is_not_finite_is_a_divergence(config: Path, tmp_path: Path) -> None:
    found = ranks("nan", config, tmp_path)
    assert [code for code, _ in found] == [1, 1], found
    run = RunDirectory(only_run(tmp_path))
    assert run.status()["state"] == "diverged"
    assert json.loads((run.path / "diverged.json").read_text()) == {
        "step": 20,
        "reason": "the validation log-loss is nan",
    }
    assert "failed: the validation log-loss is nan after step 20: " in found[0][1]
    assert (read_records(run.metrics)[-1]["step"], read_records(run.metrics)[-1]["tags"]) == (
        20,
        {"health/nonfinite": 1.0},
    )


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_hangs_is_named_and_the_run_resumes(
    victim: int, config: Path, tmp_path: Path, commands: Any
) -> None:
    words = (config, f"storage.root={tmp_path}", "dataset.source=virtual", "train.steps=100000")
    command = commands.start("train", *words, "train.collective_timeout_s=8")
    until(lambda: reached(tmp_path, 20))
    ranks = psutil.Process(command.pid).children()
    (stopped,) = [rank for rank in ranks if rank.environ()["RANK"] == str(victim)]
    stopped.suspend()
    began = time.monotonic()
    output, _ = command.communicate(timeout=240)
    assert command.returncode == 1, output
    assert f"failed: rank {victim} (process {stopped.pid} on " in output
    assert "has been silent for" in output
    assert "the same command resumes" in output
    assert time.monotonic() - began < 120
    assert f"rank {victim} " in status(tmp_path)["error"]
    assert recorded_outcome(RunDirectory(only_run(tmp_path))) == "FAILURE"
    step = status(tmp_path).get("step", 0)
    again = commands.start("train", *words)
    until(lambda: status(tmp_path)["state"] == "training" and reached(tmp_path, max(step, 20) + 5))
    again.terminate()
    again.communicate(timeout=240)
    assert again.returncode == 143


@pytest.mark.slow
def test_a_stop_during_a_long_validation_ends_in_time_and_changes_nothing(
    config: Path, tmp_path: Path, commands: Any, lasting_records: Records
) -> None:
    long = ("dataset.source=virtual", "dataset.validation=400000", "train.steps=30", "train.validate_every=15")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    commands.run("train", config, f"storage.root={whole}", *long)

    def validating() -> bool:
        beats = [json.loads(path.read_text()) for path in stopped.glob("runs/*/logs/heartbeats/rank-*.json")]
        return any(beat["phase"] == "validating" and beat["time"] - beat["since"] > 0.5 for beat in beats)

    began = time.monotonic()
    words = ("train", config, f"storage.root={stopped}", *long)
    assert commands.interrupt(signal.SIGTERM, validating, *words) == 143, time.monotonic() - began
    assert status(stopped)["state"] == "stopped"
    assert not [tags for _, tags in lasting_records(only_run(stopped)) if "train/validation_loss" in tags]
    commands.run("train", config, f"storage.root={stopped}", *long)
    one, other = only_run(stopped), only_run(whole)
    assert lasting_records(one) == lasting_records(other)
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_early_stopping_exports_the_best_weights_and_survives_kills(
    config: Path, tmp_path: Path, commands: Any, lasting_records: Records
) -> None:
    early = ["dataset.source=virtual", "train.steps=400", "train.validate_every=4", "train.log_every=4"]
    early += ["train.early_stopping.patience=2", "train.optimizer.lr=0.05"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    commands.run("train", config, f"storage.root={whole}", *early)
    losses = {
        s: t["train/validation_loss"] for s, t in lasting_records(only_run(whole)) if "train/validation_loss" in t
    }
    best = min(losses, key=lambda step: losses[step])
    assert (status(whole)["state"], status(whole)["weights_of"]) == ("trained", best)
    assert max(losses) == best + 2 * 4 < 400, "two validations later"
    for step in (best - 1, best + 5):
        when = lambda step=step: reached(killed, step)  # noqa: E731
        commands.interrupt(signal.SIGKILL, when, "train", config, f"storage.root={killed}", *early)
    commands.run("train", config, f"storage.root={killed}", *early)
    one, other = only_run(killed), only_run(whole)
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    assert lasting_records(one) == lasting_records(other)
    damaged = bytearray((one / "model.safetensors").read_bytes())
    damaged[-1] ^= 1
    (one / "model.safetensors").write_bytes(damaged)
    assert "written again" in commands.run("train", config, f"storage.root={killed}", *early)
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [1, 2])
def test_torchrun_trains_as_the_command_itself(nodes: int, config: Path, tmp_path: Path, commands: Any) -> None:
    own, launched = tmp_path / "own", tmp_path / "launched"
    commands.run("train", config, f"storage.root={own}", "dataset.source=virtual", "train.workers=2")
    options = ["--nnodes", str(nodes), "--nproc-per-node", str(2 // nodes), "--rdzv-backend", "c10d"]
    meeting = ["--rdzv-id", str(os.getpid()), "--rdzv-endpoint", "127.0.0.1:29531"]
    words = ["-m", "train", str(config), f"storage.root={launched}", "dataset.source=virtual", "train.workers=2"]
    command = [sys.executable, "-m", "torch.distributed.run", *options, *meeting, *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    agents = [
        subprocess.Popen(
            command,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        for _ in range(nodes)
    ]
    outputs = [agent.communicate(timeout=300)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0] * nodes, outputs
    (last,) = [line for output in outputs for line in output.splitlines() if line.startswith("next: ")]
    assert last == f"next: python -m eval {only_run(launched)}", "one rank speaks"
    assert (only_run(launched) / "model.safetensors").read_bytes() == (only_run(own) / "model.safetensors").read_bytes()
