"""DeepSpeed trains as plain PyTorch does, and its gathered state resumes bit for bit, on any stage and world size."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

SCRIPT = Path(__file__).parent / "ranks" / "engine.py"
STAGES = (0, 1, 2, 3)


def ranks_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("engine_ranks", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def job(name: str, stage: int, *, precision: str = "fp32", start: int = 0, load: str = "") -> dict[str, Any]:
    return {"name": name, "stage": stage, "precision": precision, "start": start, "load": load}


def launch(folder: Path, world: int, *jobs: dict[str, Any]) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={world}", "--rdzv-backend=c10d"]
    command += ["--rdzv-endpoint=127.0.0.1:0", str(SCRIPT), str(folder), json.dumps(jobs)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every run of this file: on two ranks, then one, then two again."""
    folder = tmp_path_factory.mktemp("engine")
    whole = [job(f"whole{stage}", stage) for stage in STAGES]
    resumed = [job(f"resumed{stage}", stage, start=4, load=f"whole{stage}.state0") for stage in STAGES]
    launch(folder, 2, *whole, *resumed, job("bf16", 1, precision="bf16"))
    launch(folder, 1, job("one", 3, start=4, load="whole1.state0"), job("alone", 1))
    launch(folder, 2, job("two", 2, start=4, load="alone.state0"))
    return folder


@pytest.fixture(scope="module")
def plain() -> tuple[Tensor, dict[str, Tensor]]:
    """The same training in plain PyTorch, the whole batch at once: (loss, gradient norm) [steps, 2] and weights."""
    ranks = ranks_module()
    from train.engine import parameter_groups

    model, train = ranks.model(), ranks.config(0, "fp32")
    groups = parameter_groups(model, train.optimizer.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=ranks.LR, betas=(train.optimizer.beta1, train.optimizer.beta2))
    seen = []
    for step in range(ranks.STEPS):
        loss = model(*ranks.batch(step))
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), train.clip)
        optimizer.step()
        seen.append([float(loss.detach()), float(norm)])
    return torch.tensor(seen), dict(model.state_dict())


def steps(folder: Path, name: str) -> Tensor:
    return torch.tensor(json.loads((folder / f"{name}.json").read_text())["steps"], dtype=torch.float64)


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_trains_as_plain_pytorch(stage: int, runs: Path, plain: tuple[Tensor, dict[str, Tensor]]) -> None:
    expected, weights = plain
    torch.testing.assert_close(steps(runs, f"whole{stage}").float(), expected, rtol=2e-6, atol=2e-6)
    final = torch.load(runs / f"whole{stage}.final0")
    for name, value in weights.items():
        # Adam divides by the root of tiny second moments: the weights differ more than the losses
        torch.testing.assert_close(final[f"weight/{name}"], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stage", STAGES)
def test_a_resumed_run_is_the_same_bit_for_bit(stage: int, runs: Path) -> None:
    assert torch.equal(steps(runs, f"resumed{stage}"), steps(runs, f"whole{stage}")[4:])
    assert equal(torch.load(runs / f"resumed{stage}.final0"), torch.load(runs / f"whole{stage}.final0"))
    assert equal(torch.load(runs / f"whole{stage}.state0"), torch.load(runs / f"whole{stage}.state1"))


@pytest.mark.parametrize("stage", STAGES)
def test_a_loss_that_is_not_finite_changes_nothing(stage: int, runs: Path) -> None:
    record = json.loads((runs / f"whole{stage}.json").read_text())
    assert record["diverged"] == "loss is nan"
    assert record["untouched"]


def test_a_state_goes_on_under_another_stage_and_world_size(runs: Path) -> None:
    expected = steps(runs, "whole1")[4:]
    torch.testing.assert_close(steps(runs, "one"), expected, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(steps(runs, "two"), expected, rtol=2e-6, atol=2e-6)


def test_bf16_autocast_keeps_float32_parameters(runs: Path, plain: tuple[Tensor, dict[str, Tensor]]) -> None:
    torch.testing.assert_close(steps(runs, "bf16").float(), plain[0], rtol=3e-2, atol=3e-2)
    weight = torch.load(runs / "bf16.final0")["weight/first.weight"]
    assert not torch.equal(weight, weight.bfloat16().float()), "masters are float32, not rounded"


def test_a_state_of_another_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.distributed as dist

    from train.engine import BatchPlan, Engine

    monkeypatch.setenv("LOCAL_RANK", "0")
    ranks = ranks_module()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        engine = Engine(ranks.model(), ranks.config(1, "fp32"), BatchPlan(16, 1, 16, 1))
        state = {f"weight/{name}": p.detach() for name, p in ranks.model().named_parameters()}
        with pytest.raises(ValueError, match=r"another model: exp_avg/first.bias is nothing in the checkpoint"):
            engine.load_state(state, 3)
    finally:
        dist.destroy_process_group()
