"""The benchmark of training: what it measures on, and that its table of ZeRO stages shows what the stages save."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks import train, zero_memory
from icrl.config import ModelConfig


@pytest.mark.parametrize(("gpus", "expected"), [(0, [1, 2]), (1, [1]), (2, [1, 2]), (8, [1, 2])])
def test_no_more_workers_than_training_takes(gpus: int, expected: list[int]) -> None:
    assert train.worker_counts(gpus) == expected


@pytest.mark.parametrize(("gpus", "expected"), [(0, ["cpu", "cpu"]), (2, ["cuda:0", "cuda:1"])])
def test_the_matmul_rate_is_that_of_what_training_runs_on(
    gpus: int, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    class Pool:
        def __init__(self, processes: int, mp_context: Any) -> None:
            asked.append(mp_context.get_start_method())

        def __enter__(self) -> Pool:
            return self

        def __exit__(self, *error: object) -> None: ...

        def map(self, work: Any, seconds: list[float], devices: list[str], precisions: list[str]) -> list[float]:
            asked.extend([devices, precisions])
            return [1e9] * len(devices)

    monkeypatch.setattr(train, "ProcessPoolExecutor", Pool)
    assert train.matmul_rate(2, gpus, "bf16") == 2e9
    assert asked == ["spawn" if gpus else "fork", expected, ["bf16"] * 2]


def test_products_are_of_the_precisions_type(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    multiply = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: (seen.append((a.dtype, a.shape)), multiply(a, b))[1])
    monkeypatch.setattr(train, "_MATRIX", {"cpu": 64})
    threads = torch.get_num_threads()
    for precision in ("fp32", "bf16"):
        assert train._products(0.01, "cpu", precision) > 0
    torch.set_num_threads(threads)
    assert set(seen) == {(torch.float32, (64, 64)), (torch.bfloat16, (64, 64))}


def test_the_table_of_a_machine_with_one_gpu() -> None:
    rates = ("tokens_per_s", "samples_per_s", "gflop_per_s", "utilisation", "loader_stall", "peak_memory_gib")
    memory = {"before": 2**28, "held": 2**28 + 1600, "peak": 2**28 + 2000, "parameters": 100}
    result = {
        "global_batch": 128,
        "gpus": 1,
        "throughput": {1: dict.fromkeys(rates, 0.5)},
        "scaling": None,
        "zero_memory": dict.fromkeys(train.STAGES, memory),
        "step_s": {"like the reference": (2.0, 7.0)},
    }
    lines = [" ".join(line.split()) for line in train.table(result).splitlines()]
    assert "of the matmul rate 50.0%" in lines
    assert "host memory of a worker of two, 100 parameters, bytes a parameter" in lines
    assert "ZeRO-0 16.0 20.0 256" in lines
    assert lines[-1] == "like the reference 2.00 7.00 3.5x"


@pytest.mark.slow
def test_the_table_shows_what_a_stage_saves() -> None:
    """With stage 0 weight and two moments between steps, at the peak gradients too; with 1 less of both."""
    model = ModelConfig(layers=8, heads=8, embed_dim=512, mlp_dim=2048, tokens="merged")
    found = [zero_memory.measure(stage, 0, model) for stage in (0, 1)]
    held, peak = ([(f[key] - f["before"]) / f["parameters"] for f in found] for key in ("held", "peak"))
    assert held[0] == pytest.approx(12, abs=1)
    assert peak[0] > 16
    assert held[1] < held[0] - 1, held
    assert peak[1] < peak[0] - 1, peak
