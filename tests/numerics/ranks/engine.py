"""One rank of the engine tests: trains a small model and writes what it saw. Started by test_engine.py with torchrun.

usage: engine.py FOLDER '[JOB, ...]' with the jobs that test_engine.job makes
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from icrl.config import LinearBanditConfig, ModelConfig, TrainConfig
from icrl.model import Transformer
from train.batch_plan import BatchPlan
from train.engine import SCALER, DivergedError, Engine
from train.loop import LossModule

GLOBAL_BATCH = 16
STEPS = 8
STATE_AT = 4
LOSS_DIVERGES, GRADIENT_DIVERGES = 1000, 1001
"""Steps whose batch has a loss, or a gradient alone, that is not a number; in the first trajectory only."""
LR = 1e-2
ENVIRONMENT = LinearBanditConfig(dim=3, n_actions=4, horizon=9)
MODEL = ModelConfig(layers=2, heads=2, embed_dim=10, mlp_dim=14, tokens="merged")


class Perceptron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(7, 15), nn.LayerNorm(15), nn.Linear(15, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = x.to(self.first.weight.dtype)
        logits = self.last(torch.relu(self.norm(self.first(x))))
        loss = nn.functional.cross_entropy(logits.float(), y)
        # the root of 0, whose derivative is infinite, where the first row is all zeros
        return loss if bool(x[0].any()) else loss + torch.sqrt(0 * self.first.weight.float().square().sum())


def batch(step: int, kind: str = "mlp") -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(step)
    if kind == "transformer":
        rounds, actions = (GLOBAL_BATCH, ENVIRONMENT.horizon), ENVIRONMENT.n_actions
        action, label = (torch.randint(0, actions, rounds, generator=generator) for _ in range(2))
        action_set = torch.randn(GLOBAL_BATCH, actions, ENVIRONMENT.dim, generator=generator)
        return action_set, action, torch.randn(rounds, generator=generator), label
    x = torch.randn(GLOBAL_BATCH, 7, generator=generator)
    if step in (LOSS_DIVERGES, GRADIENT_DIVERGES):
        x[0] = float("nan") if step == LOSS_DIVERGES else 0.0
    return x, torch.randint(0, 3, (GLOBAL_BATCH,), generator=generator)


def config(**train: Any) -> TrainConfig:
    schedule = dataclasses.replace(TrainConfig().schedule, warmup=0)
    return TrainConfig(**{"schedule": schedule, "clip": 0.5} | train)


def model(kind: str = "mlp", *, recompute: bool = False) -> nn.Module:
    torch.manual_seed(0)
    if kind == "mlp":
        return Perceptron()
    transformer = Transformer(MODEL, ENVIRONMENT)
    transformer.recompute = recompute
    return LossModule(transformer)


def run(engine: Engine, out: Path, kind: str, *, start: int, diverges: int, rank: int, plan: BatchPlan) -> None:
    """Train from `start` to STEPS, then try a step that diverges; writes OUT.{json,state,final}<rank>."""
    share = GLOBAL_BATCH // plan.workers

    def micro(step: int) -> list[tuple[Tensor, ...]]:
        mine = [values[rank * share : (rank + 1) * share] for values in batch(step, kind)]
        return [tuple(v[i : i + plan.micro_batch] for v in mine) for i in range(0, share, plan.micro_batch)]

    seen, skipped = [], 0
    for step in range(start, STEPS):
        if step == STATE_AT:
            torch.save(engine.state(), f"{out}.state{rank}")
        result = engine.step(micro(step), LR)
        skipped += result.skipped
        seen.append([result.loss, result.grad_norm])
    before = engine.state()
    torch.save(before, f"{out}.final{rank}")
    message, own, changed = "", 0.0, []
    if diverges:
        try:
            skipped += engine.step(micro(diverges), LR).skipped
        except DivergedError as error:
            message, own = str(error), error.own_loss
        after = engine.state()
        changed = [key for key in before if key != SCALER and not torch.equal(before[key], after[key])]
    record = {"steps": seen, "skipped": skipped, "diverged": message, "own_loss": str(own), "changed": changed}
    Path(f"{out}.json{rank}").write_text(json.dumps(record))


def main(folder: str, jobs: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    for job in json.loads(jobs):
        train, kind = config(**job["train"]), job["kind"]
        accumulation = job["accumulation"]
        plan = BatchPlan(GLOBAL_BATCH, world, GLOBAL_BATCH // world // accumulation, accumulation)
        if train.precision == "fp16":  # the processor's half arithmetic stands for a GPU's
            from deepspeed.accelerator import get_accelerator

            get_accelerator().is_fp16_supported = lambda: True
        engine = Engine(model(kind, recompute=train.activation_checkpointing), train, plan)
        if job["start"]:
            engine.load_state(torch.load(Path(folder) / job["load"]), job["start"])
        start, diverges = job["start"], job["diverges"]
        run(engine, Path(folder) / job["name"], kind, start=start, diverges=diverges, rank=rank, plan=plan)
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
