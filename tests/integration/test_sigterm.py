"""SIGTERM to a part of a training: one of its ranks, or the agent of torchrun. All of it stops, soon, in good order."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from icrl.board import read_records
from icrl.run_dir import RunDirectory

LONG = ("dataset.source=virtual", "train.workers=2", "train.steps=100000")


def until_step(root: Path, step: int, patience: float = 240) -> float:
    """Wait for a run under root to record this step; the seconds it took."""
    began = time.monotonic()
    while not any(r["step"] >= step for path in root.glob("runs/*/metrics.jsonl") for r in read_records(path)):
        assert time.monotonic() - began < patience, "it never came so far"
        time.sleep(0.05)
    return time.monotonic() - began


def terminate(victim: psutil.Process | Any, command: Any, started_in: float) -> str:
    """Send the signal; the output of the command, which must end in 20 s, or on a busy machine in twice its start."""
    victim.send_signal(signal.SIGTERM)
    began = time.monotonic()
    output, _ = command.communicate(timeout=240)
    assert time.monotonic() - began < max(20, 2 * started_in), output
    return output


def require_stopped(root: Path) -> None:
    (path,) = (root / "runs").iterdir()
    status = RunDirectory(path).status()
    assert status["state"] == "stopped"
    newest = sorted(path.glob("checkpoints/step-*"))[-1]
    assert newest.name == f"step-{status['step']:08d}"
    assert (newest / "manifest.json").exists()


@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_sigterm_to_one_rank_stops_all_of_them_after_a_checkpoint(
    victim: int, config: Path, tmp_path: Path, commands: Any
) -> None:
    command = commands.start("train", config, f"storage.root={tmp_path}", *LONG)
    started_in = until_step(tmp_path, 10)
    ranks = {rank.environ()["RANK"]: rank for rank in psutil.Process(command.pid).children()}
    output = terminate(ranks[str(victim)], command, started_in)
    assert command.returncode == 143, output
    assert "stopped, exit code 143; the same command resumes" in output
    assert [rank for rank in ranks.values() if rank.is_running()] == []
    require_stopped(tmp_path)


@pytest.mark.slow
def test_sigterm_to_the_agent_of_torchrun_stops_after_a_checkpoint(config: Path, tmp_path: Path, commands: Any) -> None:
    options = ("--nproc-per-node", 2, "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "-m", "train")
    command = commands.start("torch.distributed.run", *options, config, f"storage.root={tmp_path}", *LONG)
    started_in = until_step(tmp_path, 10)
    output = terminate(command, command, started_in)
    assert command.returncode == 1, output  # torchrun's own, whatever its ranks return
    require_stopped(tmp_path)
