"""What each ZeRO stage holds: the memory that a rank of two takes on for a model large enough to be seen.

A practical transformer of 50 million parameters in float32, some steps of a small batch, fresh processes for each
stage. What counts is what a rank has beyond the libraries and buffers that it holds after having trained a very small
model the same way. With stage 0 that is 12 bytes a parameter between steps (weight and two moments), and at the peak
gradients too (16), what they are sent in, and what a step needs; the other stages hold parts of these. On two GPUs it
is memory of the GPU. With fewer of them the ranks run on the CPU, where what is freed is given back to the system at
once: by default glibc would keep blocks of up to 32 MB.
"""

from __future__ import annotations

import ctypes
import dataclasses
import multiprocessing
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
import torch.distributed as dist

from icrl.config import LinearBanditConfig, ModelConfig, TrainConfig
from icrl.model import Transformer
from train.batch_plan import BatchPlan
from train.engine import Engine
from train.loop import LossModule

RANKS, BATCH, STEPS = 2, 2, 3
ENVIRONMENT = LinearBanditConfig(horizon=20)
SMALL = ModelConfig(layers=1, heads=1, embed_dim=16, mlp_dim=16, tokens="merged")
LARGE = ModelConfig(layers=16, heads=8, embed_dim=512, mlp_dim=2048, tokens="merged")


def measure(stage: int, gpus: int, model: ModelConfig = LARGE) -> dict[str, float]:
    """Of the first rank, bytes: `before` building the model, at the `peak` of its training, and after a step (`held`).

    Also `parameters`, their number.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="icrl-zero-") as folder:
        ranks = [(rank, stage, gpus >= RANKS, f"{folder}/store", model) for rank in range(RANKS)]
        with ProcessPoolExecutor(RANKS, mp_context=context) as pool:
            return next(iter(list(pool.map(_rank, ranks))))


def _rank(work: tuple[int, int, bool, str, ModelConfig]) -> dict[str, float]:
    rank, stage, on_gpus, store, model = work
    if not on_gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ |= {"LOCAL_RANK": str(rank), "GLOO_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(1)
    m_mmap_threshold = -3
    ctypes.CDLL(None).mallopt(m_mmap_threshold, 2**16)
    if on_gpus:
        torch.cuda.set_device(rank)
    backend = "nccl" if on_gpus else "gloo"
    dist.init_process_group(backend, init_method=f"file://{store}", rank=rank, world_size=RANKS)
    _train(SMALL, stage)
    before, _ = _memory()
    engine, parameters = _train(model, stage)
    held, peak = _memory()
    dist.barrier()
    del engine
    dist.destroy_process_group()
    return {"before": before, "held": held, "peak": peak, "parameters": parameters}


def _train(model: ModelConfig, stage: int) -> tuple[Engine, int]:
    """Some steps; the engine as they leave it, and the number of its parameters."""
    schedule = dataclasses.replace(TrainConfig().schedule, warmup=0)
    train = TrainConfig(zero_stage=stage, global_batch=RANKS * BATCH, schedule=schedule)  # type: ignore[arg-type]
    transformer = Transformer(model, ENVIRONMENT, seed=0)
    parameters = transformer.num_parameters()["total"]  # later ZeRO-3 has them in parts
    engine = Engine(LossModule(transformer), train, BatchPlan.of(train, RANKS))
    rounds, actions = (BATCH, ENVIRONMENT.horizon), ENVIRONMENT.n_actions
    shown = torch.randn(BATCH, actions, ENVIRONMENT.dim)
    batch = (shown, torch.randint(0, actions, rounds), torch.randn(rounds), torch.randint(0, actions, rounds))
    for _ in range(STEPS):
        engine.step([tuple(values.to(engine.device) for values in batch)], 1e-4)
    return engine, parameters


def _memory() -> tuple[int, int]:
    """Bytes that this process holds now, and the most that it has held: of the GPU's memory where it uses one."""
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(fields["VmRSS"].split()[0]), 1024 * int(fields["VmHWM"].split()[0])
