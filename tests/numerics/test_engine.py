"""DeepSpeed trains as plain PyTorch does, and its gathered state resumes bit for bit, on any stage and world size."""

from __future__ import annotations

import functools
import importlib.util
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

SCRIPT = Path(__file__).parent / "ranks" / "engine.py"
STAGES = (0, 1, 2, 3)
Found = Callable[[str, int], Path]
LOSS_DIVERGES, GRADIENT_DIVERGES = 1000, 1001


def ranks_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("engine_ranks", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def job(
    name: str,
    *,
    kind: str = "mlp",
    accumulation: int = 2,
    start: int = 0,
    load: str = "",
    diverges: int = 0,
    **train: Any,
) -> dict[str, Any]:
    """Train `kind` with these values of a TrainConfig from `start` on, then a step that diverges, if there is one."""
    own = {"name": name, "kind": kind, "accumulation": accumulation, "start": start, "load": load, "diverges": diverges}
    return own | {"train": train}


def launch(folder: Path, world: int, *jobs: dict[str, Any]) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={world}", "--rdzv-backend=c10d"]
    command += ["--rdzv-endpoint=127.0.0.1:0", str(SCRIPT), str(folder), json.dumps(jobs)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=480)
    assert done.returncode == 0, done.stderr[-3000:]


OPTIONS: dict[str, dict[str, Any]] = {
    "bf16": {"precision": "bf16", "diverges": GRADIENT_DIVERGES},
    "checkpointed": {"kind": "transformer", "activation_checkpointing": True},
    "offload": {"offload": "optimizer", "diverges": GRADIENT_DIVERGES},
    "offload-bf16": {"offload": "optimizer", "precision": "bf16", "diverges": GRADIENT_DIVERGES},
    "offload-fp16": {"offload": "optimizer", "precision": "fp16", "diverges": GRADIENT_DIVERGES},
    "fp16": {"precision": "fp16", "diverges": GRADIENT_DIVERGES},
    "compiled": {"kind": "transformer", "compile": True},
}
POSSIBLE: dict[str, tuple[int, ...]] = dict.fromkeys(OPTIONS, STAGES[1:]) | {
    "bf16": STAGES,
    "checkpointed": STAGES,
    "compiled": STAGES[:3],
}
"""The stages that have an option."""
AT_ONCE = {("bf16", 0), ("bf16", 1), ("bf16", 3), ("checkpointed", 1), ("offload", 3), ("fp16", 1)}
"""Of these options under these stages; the others are for the slow tests."""


def optional(*options: str) -> list[Any]:
    """Each option under each of its stages."""
    cases = [(option, stage) for option in options for stage in POSSIBLE[option]]
    return [case if case in AT_ONCE else pytest.param(*case, marks=pytest.mark.slow) for case in cases]


EACH = functools.partial(pytest.mark.parametrize, ("option", "stage"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of this file: on two ranks, then one, then two again."""
    folder = tmp_path_factory.mktemp("engine")
    jobs = [job(f"{option}{stage}", zero_stage=stage, **OPTIONS[option]) for option, stage in sorted(AT_ONCE)]
    for stage in STAGES:
        resumed = {"start": 4, "load": f"whole{stage}.state0", "diverges": GRADIENT_DIVERGES}
        jobs += [job(f"whole{stage}", zero_stage=stage, diverges=LOSS_DIVERGES)]
        jobs += [job(f"resumed{stage}", zero_stage=stage, **resumed)]
    jobs += [
        job("undivided", zero_stage=1, accumulation=1),
        job("quarters", zero_stage=2, accumulation=4),
        job("kept", kind="transformer", zero_stage=1),
        job("fp16-resumed", zero_stage=1, precision="fp16", start=4, load="fp161.state0"),
    ]
    launch(folder, 2, *jobs)
    launch(folder, 1, job("one", zero_stage=3, start=4, load="whole1.state0"), job("alone", zero_stage=1))
    launch(folder, 2, job("two", zero_stage=2, start=4, load="alone.state0"))
    return folder


@pytest.fixture(scope="module")
def more_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every option under every stage that has it, but for those at once."""
    folder = tmp_path_factory.mktemp("engine-options")
    cases = [(option, stage) for option in OPTIONS for stage in POSSIBLE[option] if (option, stage) not in AT_ONCE]
    launch(folder, 2, *(job(f"{option}{stage}", zero_stage=stage, **OPTIONS[option]) for option, stage in cases))
    return folder


@pytest.fixture
def found(request: pytest.FixtureRequest) -> Callable[[str, int], Path]:
    """Where the run of an option under a stage lies."""

    def folder(option: str, stage: int) -> Path:
        own: Path = request.getfixturevalue("runs" if (option, stage) in AT_ONCE else "more_runs")
        return own

    return folder


def train_plainly(kind: str, precision: str = "fp32") -> tuple[Tensor, dict[str, Tensor]]:
    """The same training in plain PyTorch, the whole batch at once: (loss, gradient norm) [steps, 2] and weights."""
    ranks = ranks_module()
    from train.engine import parameter_groups

    model, train = ranks.model(kind), ranks.config()
    groups = parameter_groups(model, train.optimizer.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=ranks.LR, betas=(train.optimizer.beta1, train.optimizer.beta2))
    seen = []
    for step in range(ranks.STEPS):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = model(*ranks.batch(step, kind))
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), train.clip)
        optimizer.step()
        seen.append([float(loss.detach()), float(norm)])
    return torch.tensor(seen), dict(model.state_dict())


@pytest.fixture(scope="module")
def plain() -> tuple[Tensor, dict[str, Tensor]]:
    return train_plainly("mlp")


def record(folder: Path, name: str, rank: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"{name}.json{rank}").read_text())
    return found


def steps(folder: Path, name: str) -> Tensor:
    return torch.tensor(record(folder, name)["steps"], dtype=torch.float64)


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
    for rank in (0, 1):
        seen = record(runs, f"whole{stage}", rank)
        assert seen["diverged"] == "loss is nan"
        assert not seen["changed"]
        assert math.isnan(float(seen["own_loss"])) == (rank == 0), "who had the bad trajectory can be told"


def refuses_the_gradient(folder: Path, name: str) -> None:
    for rank in (0, 1):
        seen = record(folder, name, rank)
        assert seen["diverged"].startswith("the gradient's norm is n")
        assert not seen["changed"]
        assert math.isfinite(float(seen["own_loss"]))


@pytest.mark.parametrize("stage", STAGES)
def test_a_gradient_that_is_not_finite_changes_nothing(stage: int, runs: Path) -> None:
    refuses_the_gradient(runs, f"resumed{stage}")


@EACH(optional("bf16", "offload", "offload-bf16"))
def test_a_gradient_that_is_not_finite_changes_nothing_under_options(option: str, stage: int, found: Found) -> None:
    refuses_the_gradient(found(option, stage), f"{option}{stage}")


@EACH(optional("offload"))
def test_a_host_side_optimiser_trains_as_plain_pytorch(
    option: str, stage: int, found: Found, plain: tuple[Tensor, dict[str, Tensor]]
) -> None:
    torch.testing.assert_close(steps(found(option, stage), f"{option}{stage}").float(), plain[0], rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("name", ["undivided", "quarters"])
def test_accumulation_changes_rounding_alone(name: str, runs: Path, plain: tuple[Tensor, dict[str, Tensor]]) -> None:
    torch.testing.assert_close(steps(runs, name).float(), plain[0], rtol=2e-6, atol=2e-6)


@EACH(optional("checkpointed", "compiled"))
def test_a_transformer_trains_as_plain_pytorch(option: str, stage: int, found: Found) -> None:
    expected, _ = train_plainly("transformer")
    seen = steps(found(option, stage), f"{option}{stage}").float()
    torch.testing.assert_close(seen, expected, rtol=2e-6, atol=2e-6)


def test_activation_checkpointing_changes_no_bit(runs: Path) -> None:
    assert torch.equal(steps(runs, "checkpointed1"), steps(runs, "kept"))
    assert equal(torch.load(runs / "checkpointed1.final0"), torch.load(runs / "kept.final0"))


@EACH(optional("fp16", "offload-fp16"))
def test_fp16_keeps_masters_and_skips_what_overflows(
    option: str, stage: int, found: Found, plain: tuple[Tensor, dict[str, Tensor]]
) -> None:
    folder = found(option, stage)
    # DeepSpeed's half-precision path on the CPU's half arithmetic: 11 bits against 24
    torch.testing.assert_close(steps(folder, f"{option}{stage}").float(), plain[0], rtol=2e-3, atol=2e-3)
    seen = record(folder, f"{option}{stage}")
    assert (seen["skipped"], seen["diverged"], seen["changed"]) == (1, "", [])
    weight = torch.load(folder / f"{option}{stage}.final0")["weight/first.weight"]
    assert not torch.equal(weight, weight.half().float()), "masters are float32, not rounded"


def test_a_resumed_fp16_run_is_the_same_bit_for_bit(runs: Path) -> None:
    assert torch.equal(steps(runs, "fp16-resumed"), steps(runs, "fp161")[4:])
    assert equal(torch.load(runs / "fp16-resumed.final0"), torch.load(runs / "fp161.final0"))


def test_a_state_goes_on_under_another_stage_and_world_size(runs: Path) -> None:
    expected = steps(runs, "whole1")[4:]
    torch.testing.assert_close(steps(runs, "one"), expected, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(steps(runs, "two"), expected, rtol=2e-6, atol=2e-6)


@EACH(optional("bf16", "offload-bf16"))
def test_bf16_autocast_trains_as_plain_autocast_on_float32_parameters(option: str, stage: int, found: Found) -> None:
    folder = found(option, stage)
    expected, _ = train_plainly("mlp", "bf16")
    # stages 1 to 3 also send the gradients of linear maps in bf16: 8 bits
    torch.testing.assert_close(steps(folder, f"{option}{stage}").float(), expected, rtol=2e-3, atol=2e-3)
    weight = torch.load(folder / f"{option}{stage}.final0")["weight/first.weight"]
    assert not torch.equal(weight, weight.bfloat16().float()), "parameters are float32, not rounded"


def test_a_state_of_another_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.distributed as dist

    from train.batch_plan import BatchPlan
    from train.engine import Engine

    monkeypatch.setenv("LOCAL_RANK", "0")
    ranks = ranks_module()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        engine = Engine(ranks.model(), ranks.config(zero_stage=1), BatchPlan(16, 1, 16, 1))
        state = {f"weight/{name}": p.detach() for name, p in ranks.model().named_parameters()}
        with pytest.raises(ValueError, match=r"another model: exp_avg/first.bias is nothing in the checkpoint"):
            engine.load_state(state, 3)
    finally:
        dist.destroy_process_group()
