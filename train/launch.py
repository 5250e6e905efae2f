"""Starting ranks: what must hold before any work, local processes, and what one rank does.

Under a launcher that sets the rank variables (torchrun, deepspeed) this process is one rank; otherwise it spawns
`train.workers` local ones and waits for them.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from types import FrameType

from icrl.cli import FAILED, INTERRUPTED, TERMINATED
from icrl.config import Config, ConfigError, Loaded, batch_problems
from icrl.progress import Progress, watching
from icrl.run_dir import RunDirectory

_RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_MEETING_VARIABLE = "ICRL_MEETING"
"""Environment variable with the file through which the ranks of one command find each other."""
_COLLECTIVE_TIMEOUT = timedelta(minutes=10)
_GRACE = 30.0
"""Seconds that the other ranks get to end by themselves once one has failed."""


@dataclass(frozen=True)
class TrainPlan:
    """What a training command is about to do."""

    run: RunDirectory
    workers: int
    device: str
    parameters: dict[str, int]
    finished: bool
    """The run is trained already."""

    def describe(self, config: Config) -> str:
        train = config.train
        share = train.global_batch // self.workers
        counts = ", ".join(f"{part} {count:,}" for part, count in self.parameters.items() if part != "total")
        return "\n".join(
            [
                f"run directory   {self.run.path}",
                f"model           {self.parameters['total']:,} parameters ({counts})",
                f"batch           {train.global_batch} = {self.workers} workers x {share} trajectories",
                f"training        {train.steps} steps on {self.device}, ZeRO-{train.zero_stage}, {train.precision}",
            ]
        )


def check(loaded: Loaded, gpus: int | None = None) -> TrainPlan:
    """Everything about training that can be refused before work begins, short of the dataset.

    `gpus` are those of the cluster it will run on; None: this machine's.

    Raises:
        ConfigError: the batch does not divide over the workers.
        ValueError: the run directory is another run's, or the model cannot be built.
    """
    import torch

    import icrl.checkpoint
    from icrl.model import Transformer

    config = loaded.config
    gpus = torch.cuda.device_count() if gpus is None else gpus
    workers = worker_count(config, gpus)
    if problems := list(batch_problems(config.train, workers)):
        raise ConfigError([replace(problem, path=f"train.{problem.path}") for problem in problems])
    run = RunDirectory.check(loaded)
    with torch.device("meta"):  # counts without memory
        model = Transformer(config.model, config.environment)
    counts = model.num_parameters()
    if (start := icrl.checkpoint.starting_point(config)) is not None:
        icrl.checkpoint.start_from(model, start, check_only=True)
    parameters = {str(part): count for part, count in counts.items()}
    finished = (run.path / "model.safetensors").exists()  # written once, after the last step
    return TrainPlan(run, workers, f"{gpus} GPUs" if gpus else "CPU", parameters, finished)


def worker_count(config: Config, gpus: int) -> int:
    """`train.workers`, or one per GPU, or 2 on CPU.

    Raises:
        ValueError: more workers than GPUs, where there are GPUs.
    """
    asked = config.train.workers
    if asked == "auto":
        return gpus or 2
    if gpus and asked > gpus:
        raise ValueError(f"train.workers = {asked}: expected at most one per GPU ({gpus}); lower it or use auto")
    return asked


def is_rank() -> bool:
    """Whether a launcher made this process one of several ranks."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def spawn(arguments: Sequence[str], plan: TrainPlan, steps: int) -> int:
    """Run `python -m train <arguments>` once per rank and wait; returns the exit code of the command.

    A signal is handed to the ranks, which write a checkpoint; a rank that fails ends the others. The ranks meet in a
    private directory and talk over the loopback: nothing listens on an outward interface.
    """
    meeting = tempfile.TemporaryDirectory(prefix="icrl-train-")
    ranks: list[subprocess.Popen[bytes]] = []
    received: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for rank in ranks:
            if rank.poll() is None:
                rank.send_signal(signal.SIGTERM)

    previous = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        for number in range(plan.workers):
            values = (number, plan.workers, number, "127.0.0.1", 0)
            ranks_own = {name: str(value) for name, value in zip(_RANK_VARIABLES, values, strict=True)}
            ranks_own |= {_MEETING_VARIABLE: f"{meeting.name}/store", "GLOO_SOCKET_IFNAME": "lo"}
            environment = os.environ | ranks_own
            command = [sys.executable, "-m", "train", *arguments]
            # its own session: a Ctrl-C at the terminal reaches the ranks once, through `forward`
            ranks.append(
                subprocess.Popen(command, env=environment, start_new_session=True, preexec_fn=_die_with_parent)  # noqa: PLW1509
            )
        with Progress() as progress, watching(plan.run, steps, progress):
            code = _wait(ranks)
    finally:
        for rank in ranks:
            if rank.poll() is None:
                rank.kill()
        for caught, handler in previous.items():
            signal.signal(caught, handler)
        meeting.cleanup()
    return INTERRUPTED if code == TERMINATED and signal.SIGINT in received else code


def _wait(ranks: Sequence[subprocess.Popen[bytes]]) -> int:
    """The first failure's code, or 0; once a rank fails the others get a little time to end."""
    deadline: float | None = None
    code = 0
    while any(rank.poll() is None for rank in ranks):
        failed = [rank.returncode for rank in ranks if rank.returncode not in (None, 0)]
        if failed and deadline is None:
            code, deadline = failed[0], time.monotonic() + _GRACE
        if deadline is not None and time.monotonic() > deadline:
            for rank in ranks:
                rank.kill()
        time.sleep(0.05)
    codes = [rank.returncode for rank in ranks if rank.returncode]
    code = code or (codes[0] if codes else 0)
    return 128 - code if code < 0 else code


def _die_with_parent() -> None:
    """Linux: a rank whose launcher is killed is killed too, so that it does not hold the run's lock."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def run_rank(loaded: Loaded) -> int:
    """What one rank does: join the others, train, leave; returns its exit code."""
    import torch
    import torch.distributed as dist

    from train.engine import DivergedError
    from train.loop import Hooks, pretrain

    stop = _StopFlag()
    torch.set_num_threads(loaded.config.train.threads)
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "nccl"
    meeting = os.environ.get(_MEETING_VARIABLE)
    dist.init_process_group(
        backend,
        init_method=f"file://{meeting}" if meeting else "env://",
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        timeout=_COLLECTIVE_TIMEOUT,
    )
    first = dist.get_rank() == 0
    try:
        run = RunDirectory.open(loaded) if first else RunDirectory.check(loaded)
        with run.failing() if first else nullcontext():
            outcome = pretrain(loaded.config, run, Hooks(should_stop=stop.is_set))
    except (DivergedError, ValueError, OSError) as error:
        if first:
            print(f"failed: {error}", file=sys.stderr, flush=True)  # noqa: T201
        return FAILED
    finally:
        dist.destroy_process_group()
    return TERMINATED if outcome == "stopped" else 0


class _StopFlag:
    """Set by SIGTERM or Ctrl-C."""

    def __init__(self) -> None:
        self._set = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._catch)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        self._set = True

    def is_set(self) -> bool:
        return self._set
