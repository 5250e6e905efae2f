"""Hosts the training loop in Ray Train workers, for a command or for a trial of a sweep.

Ray starts the workers, joins them in a process group and starts them again when one dies. It is told metrics and never
handed a checkpoint: after a restart the loop finds the newest one in the run directory itself.
"""

from __future__ import annotations

import shutil
import signal
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from cluster.preemption import NODES, REASON, Preemption
from icrl.config import Loaded
from icrl.files import write_json
from icrl.progress import Progress, watching
from icrl.run_dir import RunDirectory, State
from icrl.tail import Tail
from train.launch import TrainPlan

_STOP_POLL_S = 0.5
_POLL_S = 0.2
_SCRATCH = ".ray"
"""In the run directory, so that every node sees it: what Ray Train must write. Nothing is ever read back from it."""
_VALIDATION = "train/validation_loss"


def train_in_ray(loaded: Loaded, plan: TrainPlan, progress: Progress) -> State:
    """Train on the Ray this process is connected to; returns the state the run ended in: trained, stopped or diverged.

    For the main thread of a command: SIGTERM and Ctrl-C ask the workers to stop after a checkpoint; a second Ctrl-C
    ends at once.

    Raises:
        RuntimeError: the workers failed more than `train.max_failures` times.
    """
    plan.run.clear_stop_request()
    with watching(plan.run, loaded.config.train.steps, progress), _stopping(plan.run):
        return _fit(loaded, plan, _default_resources(loaded, plan), host=_own_node())


def train_in_trial(
    loaded: Loaded, plan: TrainPlan, resources: Mapping[str, float], validated: Callable[[int, float], None]
) -> State:
    """The same in any thread, without signals or display; `resources` are those of one worker.

    `validated` is told step and value of each new validation loss. A stop request in the run directory stops the
    training; it is the caller's to make and to clear.

    Raises:
        RuntimeError: as `train_in_ray`.
    """
    told, metrics = 0, Tail(plan.run.metrics)

    def look() -> None:
        nonlocal told
        for record in metrics.new():
            if record["step"] > told and _VALIDATION in record["tags"]:
                told = record["step"]
                validated(told, record["tags"][_VALIDATION])

    own = own_resources(plan.run, resources)
    release_reservation(own)
    return _fit(loaded, plan, own, look)


def own_resources(run: RunDirectory, resources: Mapping[str, float]) -> dict[str, float]:
    """A worker's resources with a few bytes of memory whose number stands for the run: its mark in Ray's tables."""
    return {**resources, "memory": float(2**20 + zlib.crc32(str(run.path).encode()) % 2**24)}


def release_reservation(resources: Mapping[str, float]) -> int:
    """Give back what a dead trial with these `own_resources` still reserves, and say how many placement groups it was.

    Ray keeps a placement group whose creator was killed until the job ends, and other trials would wait for it.
    """
    from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

    mark = resources["memory"]
    left = [
        key
        for key, entry in placement_group_table().items()
        if entry["state"] != "REMOVED" and any(bundle.get("memory") == mark for bundle in entry["bundles"].values())
    ]
    for key in left:
        remove_placement_group(PlacementGroup(_placement_group_id(key)))
    return len(left)


def _default_resources(loaded: Loaded, plan: TrainPlan) -> dict[str, float]:
    return {"CPU": float(loaded.config.train.threads)} | ({} if plan.device == "CPU" else {"GPU": 1.0})


def _fit(
    loaded: Loaded,
    plan: TrainPlan,
    resources: Mapping[str, float],
    look: Callable[[], None] = lambda: None,
    host: str | None = None,
) -> State:
    """Train; when a node is taken away go on, from a checkpoint made before, on those that stay, if they have room.

    `host`: see `Preemption`.
    """
    while True:
        preemption = Preemption(plan.run, host)
        state = _fit_once(loaded, plan, resources, preemption, look)
        preempted = state == "stopped" and plan.run.stop_requested() == REASON
        if not preempted or not preemption.can_go_on(loaded, plan):
            return state
        plan.run.clear_stop_request()


def _fit_once(
    loaded: Loaded,
    plan: TrainPlan,
    resources: Mapping[str, float],
    preemption: Preemption,
    look: Callable[[], None],
) -> State:
    run = plan.run
    scratch = run.path / _SCRATCH
    shutil.rmtree(scratch, ignore_errors=True)
    fit = _Background(lambda: _trainer(loaded, plan, scratch, resources).fit())
    fit.start()
    while fit.is_alive():
        fit.join(_POLL_S)
        preemption.look()
        look()
    shutil.rmtree(scratch, ignore_errors=True)
    status = run.status()
    state: State = status["state"]
    if state == "failed" and fit.error is None:
        raise RuntimeError(f"training failed: {status['error']}; logs are under {run.logs}")
    if fit.error is not None and state != "diverged":
        raise RuntimeError(f"training failed: {_last_line(fit.error)}; logs are under {run.logs}") from fit.error
    return state


def _trainer(loaded: Loaded, plan: TrainPlan, scratch: Path, resources: Mapping[str, float]) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from cluster.process_group import ProcessGroupConfig

    gpu = plan.device != "CPU"
    return TorchTrainer(
        _worker,
        train_loop_config={"loaded": loaded},
        torch_config=ProcessGroupConfig(
            backend="nccl" if gpu else "gloo",
            timeout_s=loaded.config.train.collective_timeout_s,
            meeting=str(scratch),
        ),
        scaling_config=ScalingConfig(
            num_workers=plan.workers,
            use_gpu=gpu,
            resources_per_worker=dict(resources),
            placement_strategy="SPREAD",  # over nodes, where there are several
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

    from train.checkpoints import CheckpointError
    from train.engine import DivergedError
    from train.loop import Hooks, pretrain

    loaded: Loaded = payload["loaded"]
    run = RunDirectory.check(loaded)
    torch.set_num_threads(loaded.config.train.threads)
    _record_nodes(run)
    poll = _StopPoll(run)

    def report(step: int, metrics: Mapping[str, float]) -> None:
        ray.train.report(dict(metrics))

    try:
        pretrain(loaded.config, run, Hooks(report=report, should_stop=poll))
    except (DivergedError, CheckpointError, ValueError):
        return  # recorded in the run directory; starting again would meet with it again


def _record_nodes(run: RunDirectory) -> None:
    """Keep in the run's logs which Ray node each rank works on."""
    import torch.distributed as dist

    nodes: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(nodes, _own_node())
    if dist.get_rank() == 0:
        write_json(run.logs / NODES, {"node_of_rank": nodes})


def _own_node() -> str:
    import ray

    node: str = ray.get_runtime_context().get_node_id()
    return node


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


def _placement_group_id(text: str) -> Any:
    from ray._raylet import PlacementGroupID

    return PlacementGroupID(bytes.fromhex(text))


def _last_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
