"""What a checkpoint costs training: in a thread, as the loop writes it, and written while training waits.

One rank on CPU, the models of configs/demo.yaml and configs/paper/exp1.yaml, checkpoints in the directory for temporary
files. The stall is what training waits for: the copy of weights and moments. Each checkpoint is done before the next
begins, as it is long before `train.checkpoint_every` steps are.
The CPU time is that of the whole checkpoint, whichever thread spends it: what it can cost where no core is idle.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from icrl.config import Config, LinearBanditConfig, load
from icrl.model import Transformer
from icrl.run_dir import RunDirectory
from train import checkpoints
from train.batch_plan import BatchPlan
from train.checkpoint_writer import CheckpointWriter
from train.engine import Engine
from train.loop import LossModule

CONFIGS = {"demo": "configs/demo.yaml", "paper": "configs/paper/exp1.yaml"}
BATCH = 8
"""Trajectories in a step, of the 128 of both configs: the steps here are the shorter, the shares the larger."""
LARGEST_SHARE = 0.05
"""Of the time of `train.checkpoint_every` steps, for the stall and for the CPU time."""


def run(quick: bool) -> dict[str, Any]:  # noqa: FBT001 - the signature of every benchmark
    """Per config seconds of a step, of a stall and of a whole checkpoint, and its shares of the steps between two."""
    repeats = 3 if quick else 9
    root = Path(__file__).resolve().parents[1]
    os.environ["LOCAL_RANK"] = "0"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    try:
        found = {name: _measure(load(root / path).config, repeats) for name, path in CONFIGS.items()}
    finally:
        dist.destroy_process_group()
        torch.set_num_threads(threads)
    shares = [result[key] for result in found.values() for key in ("stall_share", "cpu_share")]
    return {"batch": BATCH, "configs": found, "largest_share": LARGEST_SHARE, "passed": max(shares) < LARGEST_SHARE}


def _measure(config: Config, repeats: int) -> dict[str, Any]:
    model = LossModule(Transformer(config.model, config.environment))
    engine = Engine(model, config.train, BatchPlan(BATCH, 1, BATCH, 1))
    batch = _batch(config)
    engine.step([batch], 1e-4)
    step, step_cpu, stall, whole_cpu, waiting = [], [], [], [], []
    with tempfile.TemporaryDirectory(prefix="icrl-checkpoint-") as folder:
        directory = RunDirectory(Path(folder))
        directory.metrics.touch()
        writer = CheckpointWriter(directory, config)
        for number in range(1, repeats + 1):
            began, cpu = time.perf_counter(), time.process_time()
            engine.step([batch], 1e-4)
            step.append(time.perf_counter() - began)
            step_cpu.append(time.process_time() - cpu)

            began, cpu = time.perf_counter(), time.process_time()
            writer.start(2 * number, engine.state(), {"workers": 1})
            stall.append(time.perf_counter() - began)
            writer.wait()  # nothing else runs meanwhile, so that its CPU time is the checkpoint's
            whole_cpu.append(time.process_time() - cpu)

            began = time.perf_counter()
            state = engine.state()
            described = checkpoints.described(config)
            saved = checkpoints.save(directory.checkpoints, 2 * number + 1, state, {}, model=described, keep=2)
            waiting.append(time.perf_counter() - began)
            size = sum(file.stat().st_size for file in saved.path.iterdir())
    every = config.train.checkpoint_every
    seconds = {
        "step": statistics.median(step),
        "step_cpu": statistics.median(step_cpu),
        "stall": statistics.median(stall),
        "checkpoint_cpu": statistics.median(whole_cpu),
        "waiting": statistics.median(waiting),
    }
    return {
        "bytes": size,
        "every": every,
        "seconds": seconds,
        "stall_share": seconds["stall"] / (every * seconds["step"]),
        "cpu_share": seconds["checkpoint_cpu"] / (every * seconds["step_cpu"]),
    }


def _batch(config: Config) -> tuple[Tensor, ...]:
    """Action sets [B,A,d], actions [B,T], rewards [B,T] and labels [B,T] of the environment's size."""
    environment = config.environment
    assert isinstance(environment, LinearBanditConfig)
    rounds = BATCH, environment.horizon
    actions = torch.randint(environment.n_actions, rounds)
    return torch.rand(BATCH, environment.n_actions, environment.dim), actions, torch.rand(rounds), actions


def table(result: dict[str, Any]) -> str:
    """The result of `run` for a terminal."""
    columns = list(result["configs"].values())
    lines = [f"{'model of':36}" + "".join(f"{name:>12}" for name in result["configs"])]

    def row(name: str, values: list[str]) -> None:
        lines.append(f"{name:36}" + "".join(f"{value:>12}" for value in values))

    row("checkpoint, MB", [f"{each['bytes'] / 1e6:.2f}" for each in columns])
    for name, key in (
        (f"step of {result['batch']} trajectories, ms", "step"),
        ("stall of a checkpoint, ms", "stall"),
        ("CPU time of a checkpoint, ms", "checkpoint_cpu"),
        ("checkpoint with training waiting, ms", "waiting"),
    ):
        row(name, [f"{1e3 * each['seconds'][key]:.1f}" for each in columns])
    row("steps between two", [str(each["every"]) for each in columns])
    row("stall, share of their time", [f"{each['stall_share']:.3%}" for each in columns])
    row("CPU, share of theirs", [f"{each['cpu_share']:.3%}" for each in columns])
    lines.append(f"{'largest share that counts':36}{result['largest_share']:>12.0%}")
    return "\n".join(lines)
