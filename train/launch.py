"""Starting ranks: what must hold before any work, local processes, and what one rank does.

Under a launcher that sets the rank variables (torchrun, deepspeed) this process is one rank; otherwise it spawns
`train.workers` local ones and waits for them.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from types import FrameType

from icrl.cli import FAILED, INTERRUPTED, TERMINATED
from icrl.config import OBJECT_SCHEME, Config, ConfigError, Loaded, Problem, TrainConfig, batch_problems
from icrl.files import require_free
from icrl.progress import Progress, watching
from icrl.run_dir import RunDirectory
from train.batch_plan import BatchPlan

_RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_MEETING_VARIABLE = "ICRL_MEETING"
"""Environment variable with the file through which the ranks of one command find each other."""
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
    damaged: str | None = None
    """Why the weights that the run ended with cannot be used; they are written again from the last checkpoint."""

    def describe(self, config: Config) -> str:
        train, batch = config.train, BatchPlan.of(config.train, self.workers)
        share = f"{batch.micro_batch} trajectories"
        if batch.accumulation > 1:
            share = f"{batch.accumulation} micro-batches x {share}"
        options = [f"ZeRO-{train.zero_stage}", train.precision]
        options += ["optimiser on the host"] if train.offload == "optimizer" else []
        options += ["activation checkpointing"] if train.activation_checkpointing else []
        options += ["compiled"] if train.compile else []
        ends = train.early_stopping.patience
        until = "" if ends is None else f", or {ends} validations without improvement"
        mirrored = (config.run.dir or "").startswith(OBJECT_SCHEME)
        counts = ", ".join(f"{part} {count:,}" for part, count in self.parameters.items() if part != "total")
        return "\n".join(
            [
                *([] if self.damaged is None else [f"written again   {self.damaged}"]),
                f"run directory   {self.run.path}",
                *([f"mirror of       {config.run.dir}"] if mirrored else []),
                f"model           {self.parameters['total']:,} parameters ({counts})",
                f"batch           {train.global_batch} = {self.workers} workers x {share}",
                f"training        {train.steps} steps on {self.device}, {', '.join(options)}{until}",
            ]
        )


def check(loaded: Loaded, gpus: int | None = None) -> TrainPlan:
    """Everything about training that can be refused before work begins, short of the dataset.

    `gpus` are those of the cluster it will run on; None: this machine's.

    Raises:
        ConfigError: the batch does not divide over the workers, or the device lacks what is asked for.
        ValueError: the run directory is another run's, or holds checkpoints of another model, the model cannot be
            built, or the disk has no room for its checkpoints.
    """
    import torch

    import icrl.checkpoint
    from icrl.mirror import require_fits, require_no_mirror
    from icrl.model import Transformer
    from train import checkpoints

    config = loaded.config
    gpus = torch.cuda.device_count() if gpus is None else gpus
    workers = worker_count(config, gpus)
    if problems := [*batch_problems(config.train, workers), *device_problems(config.train, gpus)]:
        raise ConfigError([replace(problem, path=f"train.{problem.path}") for problem in problems])
    if is_rank() and _MEETING_VARIABLE not in os.environ:
        require_no_mirror(config, "torchrun or deepspeed, whose ranks need not share a disk")
    run = RunDirectory.check(loaded)
    with torch.device("meta"):  # counts without memory
        model = Transformer(config.model, config.environment)
    counts = model.num_parameters()
    if (start := icrl.checkpoint.starting_point(config)) is not None:
        icrl.checkpoint.start_from(model, start, check_only=True)
    parameters = {str(part): count for part, count in counts.items()}
    checkpoints.require_model(run.checkpoints, config)
    require_fits(config, checkpoints.bytes_needed(parameters["total"]))
    written, damaged = (run.path / icrl.checkpoint.WEIGHTS).exists(), None  # once, after the last step
    if written:
        try:
            icrl.checkpoint.load(run.path)
        except ValueError as error:
            damaged = str(error)
    else:
        present = len(list(run.checkpoints.glob("step-*")))
        more = max(config.train.keep_checkpoints + 1 - present, 1)
        require_free(run.path, more * checkpoints.bytes_needed(parameters["total"]))
    finished = written and damaged is None
    return TrainPlan(run, workers, f"{gpus} GPUs" if gpus else "CPU", parameters, finished, damaged)


def worker_count(config: Config, gpus: int) -> int:
    """`train.workers`, or one per GPU, or 2 on CPU; under a launcher the processes that it started.

    Raises:
        ValueError: more workers than GPUs, where there are GPUs, or a launcher started another number than was asked.
    """
    asked = config.train.workers
    if is_rank():
        started, here = int(os.environ["WORLD_SIZE"]), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if asked not in ("auto", started):
            raise ValueError(
                f"train.workers = {asked}: expected the {started} processes that the launcher started; "
                "change one of them or use auto"
            )
        if gpus and here > gpus:
            raise ValueError(f"the launcher started {here} processes here: expected at most one per GPU ({gpus})")
        return started
    if asked == "auto":
        return gpus or 2
    if gpus and asked > gpus:
        raise ValueError(f"train.workers = {asked}: expected at most one per GPU ({gpus}); lower it or use auto")
    return asked


def device_problems(train: TrainConfig, gpus: int) -> Iterator[Problem]:
    """What is asked for and the device lacks."""
    import torch

    if train.precision == "fp16" and not gpus:
        yield Problem(
            "precision",
            "fp16",
            "fp32 or bf16 on CPU: it has no half-precision arithmetic worth the name",
            "set train.precision=bf16",
        )
    if (
        train.precision == "bf16"
        and torch.cuda.is_available()
        and not torch.cuda.is_bf16_supported(including_emulation=False)
    ):
        name = torch.cuda.get_device_name()
        yield Problem("precision", "bf16", f"fp32 or fp16 on this GPU ({name})", "set train.precision=fp16")
    if train.compile and not gpus and shutil.which(os.environ.get("CXX", "g++")) is None:
        yield Problem("compile", train.compile, "false without a C++ compiler", "install g++, or set CXX")


def is_rank() -> bool:
    """Whether a launcher made this process one of several ranks."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def speaks() -> bool:
    """Whether this process talks to the user: the command itself, or the first of a launcher's ranks."""
    return not is_rank() or (os.environ["RANK"] == "0" and _MEETING_VARIABLE not in os.environ)


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
            ranks_own |= {
                _MEETING_VARIABLE: f"{meeting.name}/store",
                "GLOO_SOCKET_IFNAME": "lo",
                "NCCL_SOCKET_IFNAME": "lo",
            }
            environment = os.environ | ranks_own
            command = [sys.executable, "-m", "train", *arguments]
            # its own session: a Ctrl-C at the terminal reaches the ranks once, through `forward`
            ranks.append(
                subprocess.Popen(command, env=environment, start_new_session=True, preexec_fn=_die_with_parent)  # noqa: PLW1509
            )
            if received:  # while it was started, and `forward` did not know it yet
                ranks[-1].send_signal(signal.SIGTERM)
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
    while None in (codes := [rank.poll() for rank in ranks]):
        if deadline is None and (failed := [found for found in codes if found]):
            code, deadline = failed[0], time.monotonic() + _GRACE
        if deadline is not None and time.monotonic() > deadline:
            for rank in ranks:
                rank.kill()
        time.sleep(0.05)
    code = code or next((found for found in codes if found), 0)
    return 128 - code if code < 0 else code


def _die_with_parent() -> None:
    """Linux: a rank whose launcher is killed is killed too, so that it does not hold the run's lock."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def run_rank(loaded: Loaded, stop: StopFlag) -> int:
    """What one rank does: join the others, train, leave; returns its exit code."""
    import torch
    import torch.distributed as dist

    from train.engine import DivergedError
    from train.heartbeat import LostRankError, patience
    from train.loop import Hooks, pretrain

    torch.set_num_threads(loaded.config.train.threads)
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "nccl"
    timeout, _ = patience(loaded.config.train.collective_timeout_s, backend)
    meeting = os.environ.get(_MEETING_VARIABLE)
    dist.init_process_group(
        backend,
        init_method=f"file://{meeting}" if meeting else "env://",
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        timeout=timeout,
    )
    first = dist.get_rank() == 0
    try:
        run = RunDirectory.open(loaded) if first else RunDirectory.check(loaded)
        with run.failing() if first else nullcontext(), _following(run, loaded.config) if speaks() else nullcontext():
            outcome = pretrain(loaded.config, run, Hooks(should_stop=stop.is_set, failed=_say_failed))
    except (DivergedError, ValueError, OSError):
        return FAILED
    except LostRankError:
        os._exit(FAILED)  # whatever waits for the lost rank would wait again, in order to end well
    finally:
        dist.destroy_process_group()
    return TERMINATED if outcome == "stopped" else 0


def _say_failed(message: str) -> None:
    print(f"failed: {message}", file=sys.stderr, flush=True)  # noqa: T201


@contextlib.contextmanager
def _following(run: RunDirectory, config: Config) -> Iterator[None]:
    """The progress display where no command of ours waits for the ranks."""
    with Progress() as progress, watching(run, config.train.steps, progress):
        yield


class StopFlag:
    """Set by SIGTERM or Ctrl-C."""

    def __init__(self) -> None:
        self._set = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._catch)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        self._set = True

    def is_set(self) -> bool:
        return self._set
