"""A tiny experiment, and commands run as a user runs them: in a process of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from icrl.board import read_records

TINY = """\
name: tiny
environment: {kind: linear_bandit, dim: 2, n_actions: 3, horizon: 10, noise_std: 0.5}
context:
  - {algorithm: linucb, confidence: 1.0}
dataset: {train: 2000, validation: 256, test: 256, actors: 0}
model: {layers: 2, heads: 2, embed_dim: 16, mlp_dim: 32, tokens: merged}
train: {steps: 60, global_batch: 32, checkpoint_every: 8, log_every: 5, validate_every: 20, schedule: {warmup: 5}}
eval: {environments: 40, baselines: [linucb, uniform]}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A HOME of the test's own: Ray keeps things there."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    return folder


class Commands:
    """`python -m <module> ...` from the checkout."""

    def start(self, module: str, *arguments: object) -> subprocess.Popen[str]:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", module, *map(str, arguments)]
        return subprocess.Popen(
            command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )

    def run(self, module: str, *arguments: object, code: int = 0) -> str:
        """The output of a command that must end with `code`."""
        process = self.start(module, *arguments)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == code, f"exit code {process.returncode}, expected {code}\n{output[-4000:]}"
        return output

    def interrupt(
        self, number: int, when: Callable[[], bool], module: str, *arguments: object, patience: float = 120
    ) -> int | None:
        """Start a command, send it a signal once `when` holds; its exit code, or None if it ended before."""
        process = self.start(module, *arguments)
        deadline = time.monotonic() + patience
        while not when():
            if process.poll() is not None:
                process.communicate()
                return None
            assert time.monotonic() < deadline, "the moment to interrupt never came"
            time.sleep(0.02)
        os.kill(process.pid, number) if number != signal.SIGKILL else process.kill()
        process.communicate(timeout=120)
        return process.returncode


@pytest.fixture
def commands() -> Commands:
    return Commands()


def lasting(run: Path) -> list[tuple[int, dict[str, Any]]]:
    """The records of a run without what differs between two runs of one config: times and rates."""
    return [
        (record["step"], {tag: value for tag, value in record["tags"].items() if not tag.startswith("perf/")})
        for record in read_records(run / "metrics.jsonl")
    ]


def series(run: Path) -> dict[str, list[tuple[int, float]]]:
    """The same numbers as TensorBoard reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run))
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith("perf/")]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


@pytest.fixture
def lasting_records() -> Callable[[Path], list[tuple[int, dict[str, Any]]]]:
    return lasting


@pytest.fixture
def event_series() -> Callable[[Path], dict[str, list[tuple[int, float]]]]:
    return series
