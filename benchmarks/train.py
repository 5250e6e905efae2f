"""Pretraining as a user runs it: throughput, how much of the machine it uses, what it waits for, what it holds.

`python -m train` at the size of Experiment 1 on one worker and on two, where there are GPUs on no more than there are
GPUs; what a run says of itself is read from its metrics. The rate of matrix products that the utilisation is of is
measured before and after, on the devices that the run trains on and in its precision, with as many processes at once as
it had workers. Then what a model of 50 million parameters holds under every ZeRO stage (`zero_memory`), and the step on
one core against the reference's way (`step`). Wall times, but for the last: they mean something on a machine with
nothing else to do.
"""

from __future__ import annotations

import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks import step, zero_memory
from icrl.board import read_records
from icrl.config import Config, load
from icrl.model import Transformer

STALL_CEILING = 0.02
"""Largest part of the time in which training waits for data that counts as a success."""
STAGES = (0, 1, 2, 3)
_EXPERIMENT = "configs/paper/exp1.yaml"
_MATRIX = {"cpu": 1024, "cuda": 8192}
"""Rows and columns of the matrices whose products are timed."""
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_WAYS = {
    "like the reference": ("four heads", "four heads, reference"),
    "merged tokens, one head": ("one head, merged tokens", "one head, reference"),
}
"""Steps that are set against the reference's: ours and the reference's, of those in `step.WAYS`."""


def run(quick: bool) -> dict[str, Any]:  # noqa: FBT001 - the signature of every benchmark
    """`throughput` by number of workers, `scaling` of two over one (None: there is one GPU), `zero_memory` by stage in
    bytes a parameter, `step_s` of ours and the reference's, whether stalls pass.
    """
    gpus = torch.cuda.device_count()
    steps, batch = (9, 16) if quick else (30, 128)
    sizes = ["dataset.train=4096", "dataset.validation=64", "dataset.test=0", f"train.global_batch={batch}"]
    with tempfile.TemporaryDirectory(prefix="icrl-train-") as folder:
        words = [f"storage.root={folder}", f"train.steps={steps}", f"train.log_every={steps // 3}", *sizes]
        words += ["train.schedule.warmup=0", f"train.checkpoint_every={steps}", f"train.validate_every={steps}"]
        _python("data_gen", *words, "dataset.actors=0")
        throughput = {workers: _throughput(words, workers, gpus) for workers in worker_counts(gpus)}
    stall = max(found["loader_stall"] for found in throughput.values())
    speeds = [throughput[workers]["samples_per_s"] / workers for workers in throughput]
    return {
        "global_batch": batch,
        "gpus": gpus,
        "throughput": throughput,
        "scaling": speeds[1] / speeds[0] if len(speeds) > 1 else None,
        "zero_memory": {stage: zero_memory.measure(stage, gpus) for stage in STAGES},
        "step_s": _steps(1 if quick else 3),
        "stall_ceiling": STALL_CEILING,
        "passed": stall < STALL_CEILING,
    }


def worker_counts(gpus: int) -> list[int]:
    """One and two workers, as far as training takes them: at most one a GPU, where there are GPUs."""
    return [workers for workers in (1, 2) if not gpus or workers <= gpus]


def _throughput(words: list[str], workers: int, gpus: int) -> dict[str, float]:
    own = [*words, f"train.workers={workers}", f"run.dir=workers{workers}"]
    config = load(_EXPERIMENT, own).config
    before = matmul_rate(workers, gpus, config.train.precision)
    windows = _trained(own)[1:]  # the first has the warming up
    after = matmul_rate(workers, gpus, config.train.precision)
    found = {
        name: statistics.median(window[f"perf/{tag}"] for window in windows)
        for name, tag in (
            ("tokens_per_s", "tokens_per_second"),
            ("samples_per_s", "trajectories_per_second"),
            ("loader_stall", "loader_stall"),
            ("peak_memory_gib", "peak_memory_gib"),
        )
    }
    achieved = found["samples_per_s"] * flops_per_trajectory(config)
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


def matmul_rate(processes: int, gpus: int, precision: str) -> float:
    """Floating-point operations a second of matrix products, so many processes at once.

    Each has a GPU of its own, or without GPUs one thread; operands are of the type that `train.precision` computes in.
    """
    devices = [f"cuda:{number}" if gpus else "cpu" for number in range(processes)]
    context = multiprocessing.get_context("spawn" if gpus else "fork")  # CUDA does not survive a fork
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        return sum(pool.map(_products, [0.5] * processes, devices, [precision] * processes))


def _products(seconds: float, device: str, precision: str) -> float:
    torch.set_num_threads(1)
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda device: None
    size = _MATRIX[device.partition(":")[0]]
    a, b = torch.randn(2, size, size).to(device, _DTYPES[precision]).unbind(0)
    a @ b
    wait(device)
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        a @ b
        wait(device)
        count += 1
    return 2 * size**3 * count / (time.perf_counter() - began)


def _steps(repeats: int) -> dict[str, tuple[float, float]]:
    """CPU seconds of a step of ours and of the reference's, one thread."""
    return {name: step.against(ours, rival, repeats) for name, (ours, rival) in _WAYS.items()}


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
    if result["scaling"] is not None:
        lines.append(f"{'scaling efficiency':26}{result['scaling']:28.1%}")
    zero = result["zero_memory"]
    where = "GPU memory" if result["gpus"] >= zero_memory.RANKS else "host memory"
    lines.append(f"{where} of a worker of two, {zero[0]['parameters']:,} parameters, bytes a parameter")
    lines.append(f"{'':26}{'between steps':>14}{'at the peak':>14}{'before, MiB':>14}")
    for stage, found in zero.items():
        held, peak = ((found[key] - found["before"]) / found["parameters"] for key in ("held", "peak"))
        lines.append(f"{f'ZeRO-{stage}':26}{held:14.1f}{peak:14.1f}{found['before'] / 2**20:14,.0f}")
    lines.append(f"{'a step on one core, CPU s':26}{'ours':>14}{'reference':>14}{'ratio':>14}")
    for name, (ours, rival) in result["step_s"].items():
        lines.append(f"{name:26}{ours:14.2f}{rival:14.2f}{rival / ours:13.1f}x")
    return "\n".join(lines)
