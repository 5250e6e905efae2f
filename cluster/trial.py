"""Hosts the training loop in Ray Train workers.

Ray starts the workers, joins them in a process group and starts them again when one dies. It is told metrics and never
handed a checkpoint: after a restart the loop finds the newest one in the run directory itself.
"""

from __future__ import annotations

import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from icrl.config import Loaded
from icrl.progress import Progress, watching
from icrl.run_dir import RunDirectory, State
from train.launch import TrainPlan

_COLLECTIVE_TIMEOUT_S = 600
_STOP_POLL_S = 0.5


def train_in_ray(loaded: Loaded, plan: TrainPlan, progress: Progress) -> State:
    """Train on the Ray this process is connected to; returns the state the run ended in: trained, stopped or diverged.

    SIGTERM and Ctrl-C ask the workers to stop after a checkpoint; a second Ctrl-C ends at once.

    Raises:
        RuntimeError: the workers failed more than `train.max_failures` times.
    """
    run = plan.run
    run.clear_stop_request()
    with tempfile.TemporaryDirectory(prefix="icrl-train-") as scratch:
        fit = _Background(lambda: _trainer(loaded, plan, Path(scratch)).fit())
        with watching(run, loaded.config.train.steps, progress), _stopping(run):
            fit.start()
            while fit.is_alive():
                fit.join(0.2)
    state: State = run.status()["state"]
    if fit.error is not None and state != "diverged":
        raise RuntimeError(f"training failed: {_last_line(fit.error)}; logs are under {run.logs}") from fit.error
    return state


def _trainer(loaded: Loaded, plan: TrainPlan, scratch: Path) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    gpu = plan.device != "CPU"
    threads = loaded.config.train.threads
    return TorchTrainer(
        _worker,
        train_loop_config={"loaded": loaded},
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo", timeout_s=_COLLECTIVE_TIMEOUT_S),
        scaling_config=ScalingConfig(
            num_workers=plan.workers, use_gpu=gpu, resources_per_worker={"CPU": threads} | ({"GPU": 1} if gpu else {})
        ),
        run_config=RunConfig(
            name=plan.run.path.name,
            storage_path=str(scratch),
            failure_config=FailureConfig(max_failures=loaded.config.train.max_failures),
        ),
    )


def _worker(payload: Mapping[str, Any]) -> None:
    """One rank, inside a Ray Train worker."""
    import ray.train
    import torch

    from train.engine import DivergedError
    from train.loop import Hooks, pretrain

    loaded: Loaded = payload["loaded"]
    run = RunDirectory.check(loaded)
    torch.set_num_threads(loaded.config.train.threads)
    poll = _StopPoll(run)

    def report(step: int, metrics: Mapping[str, float]) -> None:
        ray.train.report(dict(metrics))

    try:
        pretrain(loaded.config, run, Hooks(report=report, should_stop=poll))
    except DivergedError:
        return  # recorded in the run directory; starting again would diverge again


class _StopPoll:
    """Looks for the stop request in the run directory, at most every half second."""

    def __init__(self, run: RunDirectory) -> None:
        self._run, self._looked = run, 0.0

    def __call__(self) -> bool:
        now = time.monotonic()
        if now - self._looked < _STOP_POLL_S:
            return False
        self._looked = now
        return self._run.stop_requested() is not None


class _Background(threading.Thread):
    """Ray blocks the thread that waits for it; the main thread stays free for signals."""

    def __init__(self, body: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._body = body
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self._body()
        except Exception as error:
            self.error = error


@contextmanager
def _stopping(run: RunDirectory) -> Iterator[None]:
    """Signals become a stop request."""
    interrupts = 0

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal interrupts
        interrupts += number == signal.SIGINT
        if interrupts > 1:
            raise KeyboardInterrupt
        run.request_stop(signal.Signals(number).name)

    previous = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _last_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
