"""Pretraining as a user runs it: throughput, how much of the machine it uses, what it waits for, what it holds.

`python -m train` at the size of Experiment 1 on one worker and on two, then a model of some ten million parameters
under every ZeRO stage on two. What a run says of itself is read from its metrics; the rate of matrix products that the
utilisation is of is measured before and after, with as many processes at once as the run had workers. Wall times: they
mean something on a machine with nothing else to do.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from icrl.board import read_records
from icrl.config import Config, load
from icrl.model import Transformer

STALL_CEILING = 0.02
"""Largest part of the time in which training waits for data that counts as a success."""
STAGES = (0, 1, 2, 3)
_LARGE = ["model.layers=6", "model.embed_dim=384", "model.mlp_dim=1536", "environment.horizon=20"]
_EXPERIMENT = "configs/paper/exp1.yaml"
_MATRIX = 1024


def run(quick: bool) -> dict[str, Any]:  # noqa: FBT001 - the signature of every benchmark
    """`throughput` by number of workers, `scaling` of two over one, `zero_memory_gib` by stage, whether stalls pass."""
    steps, batch = (9, 16) if quick else (30, 128)
    sizes = ["dataset.train=4096", "dataset.validation=64", "dataset.test=0", f"train.global_batch={batch}"]
    with tempfile.TemporaryDirectory(prefix="icrl-train-") as folder:
        words = [f"storage.root={folder}", f"train.steps={steps}", f"train.log_every={steps // 3}", *sizes]
        words += ["train.schedule.warmup=0", f"train.checkpoint_every={steps}", f"train.validate_every={steps}"]
        _python("data_gen", *words, "dataset.actors=0")
        throughput = {workers: _throughput(words, workers) for workers in (1, 2)}
        large = [*words, *_LARGE, "train.global_batch=8", "train.steps=3", "train.log_every=1"]
        _python("data_gen", *large, "dataset.actors=0")
        memory = {}
        for stage in STAGES:
            tags = _trained([*large, "train.workers=2", f"train.zero_stage={stage}", f"run.dir=zero{stage}"])
            memory[stage] = max(window["perf/peak_memory_gib"] for window in tags)
    stall = max(found["loader_stall"] for found in throughput.values())
    return {
        "global_batch": batch,
        "throughput": throughput,
        "scaling": throughput[2]["samples_per_s"] / throughput[1]["samples_per_s"] / 2,
        "zero_memory_gib": memory,
        "zero_parameters": _parameters(load(_EXPERIMENT, _LARGE).config),
        "stall_ceiling": STALL_CEILING,
        "passed": stall < STALL_CEILING,
    }


def _throughput(words: list[str], workers: int) -> dict[str, float]:
    before = _matmul_rate(workers)
    own = [*words, f"train.workers={workers}", f"run.dir=workers{workers}"]
    windows = _trained(own)[1:]  # the first has the warming up
    after = _matmul_rate(workers)
    found = {
        name: statistics.median(window[f"perf/{tag}"] for window in windows)
        for name, tag in (
            ("tokens_per_s", "tokens_per_second"),
            ("samples_per_s", "trajectories_per_second"),
            ("loader_stall", "loader_stall"),
            ("peak_memory_gib", "peak_memory_gib"),
        )
    }
    achieved = found["samples_per_s"] * flops_per_trajectory(load(_EXPERIMENT, own).config)
    return found | {"gflop_per_s": achieved / 1e9, "utilisation": achieved / statistics.mean((before, after))}


def flops_per_trajectory(config: Config) -> float:
    """Floating-point operations of a forward and a backward pass: twice, and four times, the multiply-adds.

    Matrices meet every token; a query meets, on the average, half of the keys, once for its score and once for the mix.
    """
    model = Transformer(config.model, config.environment)
    tokens = model.tokenizer.n_tokens
    embedded = {"frame.position"}
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and name not in embedded)
    attention = 2 * config.model.layers * config.model.embed_dim * tokens / 2
    return 6 * tokens * (matrices + attention)


def _parameters(config: Config) -> int:
    return Transformer(config.model, config.environment).num_parameters()["total"]


def _matmul_rate(processes: int) -> float:
    """Floating-point operations a second of float32 matrix products, one thread each, so many processes at once."""
    with ProcessPoolExecutor(processes) as pool:
        return sum(pool.map(_products, [0.5] * processes))


def _products(seconds: float) -> float:
    import torch

    torch.set_num_threads(1)
    a, b = torch.randn(2, _MATRIX, _MATRIX).unbind(0)
    a @ b
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        a @ b
        count += 1
    return 2 * _MATRIX**3 * count / (time.perf_counter() - began)


def _trained(words: list[str]) -> list[dict[str, float]]:
    """The tags of each record of training metrics of a run of its own."""
    _python("train", *words)
    config = load(_EXPERIMENT, words).config
    records = read_records(Path(config.storage.root) / str(config.run.dir) / "metrics.jsonl")
    return [record["tags"] for record in records if "train/loss" in record["tags"]]


def _python(module: str, *words: str) -> None:
    command = [sys.executable, "-m", module, _EXPERIMENT, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(
            f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )


def table(result: dict[str, Any]) -> str:
    """The result of `run` for a terminal."""
    rows = (
        ("tokens/s", "tokens_per_s", "{:,.0f}"),
        ("trajectories/s", "samples_per_s", "{:,.1f}"),
        ("GFLOP/s", "gflop_per_s", "{:,.1f}"),
        ("of the matmul rate", "utilisation", "{:.1%}"),
        ("waiting for data", "loader_stall", "{:.2%}"),
        ("peak memory, GiB", "peak_memory_gib", "{:.2f}"),
    )
    found = result["throughput"]
    lines = [f"{'batch of ' + str(result['global_batch']):26}" + "".join(f"{n} worker(s)".rjust(14) for n in found)]
    lines += [
        f"{label:26}" + "".join(form.format(f[key]).rjust(14) for f in found.values()) for label, key, form in rows
    ]
    lines.append(f"{'scaling efficiency':26}{result['scaling']:28.1%}")
    lines.append(f"peak memory of a worker, {result['zero_parameters']:,} parameters on two")
    lines += [f"{f'ZeRO-{stage}':26}{gib:24.2f} GiB" for stage, gib in result["zero_memory_gib"].items()]
    return "\n".join(lines)
