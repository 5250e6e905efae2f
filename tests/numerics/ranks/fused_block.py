"""One rank of the fused block's tests: trains a small transformer in DeepSpeed's hands. Started with torchrun.

usage: fused_block.py OUT.json, which gets {stage: {"steps": [[loss, norm of the gradient], ...], "fused": calls}}
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from icrl.config import LinearBanditConfig, ModelConfig, TrainConfig
from icrl.model import Transformer, practical
from icrl.model.fused import fused_block
from icrl.model.fused.block import Parts
from train.engine import BatchPlan, Engine
from train.loop import LossModule

GLOBAL_BATCH = 8
STAGES = (0, 1, 2, 3)
LAYERS = 2
STEPS = 4
LR = 1e-2
ENVIRONMENT = LinearBanditConfig(dim=3, n_actions=4, horizon=12)


def config(stage: int) -> TrainConfig:
    schedule = dataclasses.replace(TrainConfig().schedule, warmup=0)
    return TrainConfig(zero_stage=stage, schedule=schedule)  # type: ignore[arg-type]


def model() -> LossModule:
    shape = ModelConfig(layers=LAYERS, heads=2, embed_dim=16, mlp_dim=24, tokens="merged")
    return LossModule(Transformer(shape, ENVIRONMENT, seed=3))


def batch(step: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(step)
    action_set = torch.rand(GLOBAL_BATCH, 4, 3, generator=generator)
    action, label = torch.randint(0, 4, (2, GLOBAL_BATCH, 12), generator=generator)
    return action_set, action, torch.randn(GLOBAL_BATCH, 12, generator=generator), label


def train(stage: int, rank: int, world: int) -> list[list[float]]:
    """(loss, norm of the gradient) of every step."""
    share = GLOBAL_BATCH // world
    engine = Engine(model(), config(stage), BatchPlan(GLOBAL_BATCH, world, share, 1))
    seen = []
    for step in range(STEPS):
        mine = tuple(values[rank * share : (rank + 1) * share] for values in batch(step))
        result = engine.step([mine], LR)
        seen.append([result.loss, result.grad_norm])
    return seen


def main(out: str) -> None:
    torch.set_num_threads(1)
    calls: list[None] = []

    def counted(h: Tensor, parts: Parts, heads: int) -> Tensor:
        calls.append(None)
        return fused_block(h, parts, heads)

    practical.fused_block = counted
    dist.init_process_group("gloo")
    record = {}
    for stage in STAGES:
        calls.clear()
        record[stage] = {"steps": train(stage, dist.get_rank(), dist.get_world_size()), "fused": len(calls)}
    if dist.get_rank() == 0:
        Path(out).write_text(json.dumps(record))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
