"""One rank of the engine tests: trains a small model and writes what it saw. Started by test_engine.py with torchrun.

usage: engine.py FOLDER '[{"name": ..., "stage": 1, "precision": "fp32", "start": 0, "load": "x.state0"}, ...]'
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from icrl.config import TrainConfig
from train.engine import BatchPlan, DivergedError, Engine

GLOBAL_BATCH = 16
STEPS = 8
STATE_AT = 4
DIVERGING = 1000
LR = 1e-2


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(7, 15), nn.LayerNorm(15), nn.Linear(15, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.last(torch.relu(self.norm(self.first(x)))), y)


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(GLOBAL_BATCH, 7, generator=generator)
    return (x if step != DIVERGING else x * float("nan")), torch.randint(0, 3, (GLOBAL_BATCH,), generator=generator)


def config(stage: int, precision: str) -> TrainConfig:
    schedule = dataclasses.replace(TrainConfig().schedule, warmup=0)
    return TrainConfig(zero_stage=stage, precision=precision, schedule=schedule, clip=0.5)  # type: ignore[arg-type]


def model() -> Model:
    torch.manual_seed(0)
    return Model()


def run(engine: Engine, out: Path, *, start: int, rank: int, world: int) -> None:
    """Train from `start` to STEPS, then try a step that diverges; writes OUT.json, OUT.state<rank>, OUT.final<rank>."""
    share = GLOBAL_BATCH // world

    def micro(step: int) -> list[tuple[Tensor, ...]]:
        x, y = (values[rank * share : (rank + 1) * share] for values in batch(step))
        return [(x[i : i + share // 2], y[i : i + share // 2]) for i in (0, share // 2)]

    seen = []
    for step in range(start, STEPS):
        if step == STATE_AT:
            torch.save(engine.state(), f"{out}.state{rank}")
        result = engine.step(micro(step), LR)
        seen.append([result.loss, result.grad_norm])
    before = engine.state()
    diverged = ""
    try:
        engine.step(micro(DIVERGING), LR)
    except DivergedError as error:
        diverged = str(error)
    after = engine.state()
    untouched = all(torch.equal(before[key], after[key]) for key in before)
    torch.save(before, f"{out}.final{rank}")
    if rank == 0:
        Path(f"{out}.json").write_text(json.dumps({"steps": seen, "diverged": diverged, "untouched": untouched}))


def main(folder: str, plan: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    share = GLOBAL_BATCH // world
    for job in json.loads(plan):
        engine = Engine(model(), config(job["stage"], job["precision"]), BatchPlan(GLOBAL_BATCH, world, share // 2, 2))
        if job["start"]:
            engine.load_state(torch.load(Path(folder) / job["load"]), job["start"])
        run(engine, Path(folder) / job["name"], start=job["start"], rank=rank, world=world)
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
