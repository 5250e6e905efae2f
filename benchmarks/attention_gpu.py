"""`python -m benchmarks attention --gpu`: the Triton kernels on the CUDA device at hand, in under eight minutes.

Checks first (every shipped tile against float64, repeats, poisoned memory; compute-sanitizer where installed), then
times: ours, eager T x T, SDPA's flash kernel (softmax) and FlexAttention made to compute ReLU attention, against the
floors of the device's own copy and matmul rates. Needs torch, Triton and NumPy only. Exit code 0, 1 when a check fails
or a target is missed, 2 without a GPU.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.attention_floors import (
    LONG,
    PAPER,
    SHORT,
    DecodeTiming,
    Rates,
    Shape,
    Timing,
    decode_rows,
    target_rows,
    targets,
    timing_rows,
)

RESULTS = Path(__file__).parent / "results"
BASELINES_S = 330.0
"""Seconds after the start from which no baseline is begun: ours are timed first."""
FLEX = (PAPER, Shape(32, 16, 1024, 64), LONG)
"""FlexAttention compiles for each shape: half a minute, so only here."""
SHAPES = (
    *(Shape(b, 4, t, d) for b, t, d in ((64, 200, 8), (512, 200, 8), (64, 400, 16), (256, 400, 16), (512, 400, 16))),
    Shape(64, 4, 400, 32),
    *(Shape(256, 4, t, 64) for t in (256, 512, 1024, 2048)),
    Shape(32, 16, 1024, 64),
    Shape(16, 16, 2048, 64),
    Shape(4, 32, 4096, 64),
    Shape(2, 32, 4096, 128),
    LONG,
    Shape(1, 16, 16384, 128),
)
DECODE = ((4096, 4, 8, 200), (4096, 4, 8, 1000), (4096, 4, 16, 1000), (1024, 4, 16, 400), (256, 4, 16, 400))
assert PAPER in SHAPES
assert SHORT in SHAPES


def between_events(work: Callable[[], object]) -> float:
    """Seconds on the device."""
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    work()
    stop.record()
    stop.synchronize()
    return float(start.elapsed_time(stop)) / 1e3


def seconds(works: Sequence[Callable[[], object]], repeats: int = 15) -> float:
    """Median seconds of one call, calls in turn: replays of a CUDA graph between events, so launches cost little."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for work in works:
            work()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for work in works:
            work()
    graph.replay()
    return statistics.median(between_events(graph.replay) for _ in range(repeats)) / len(works)


def measured_rates() -> Rates:
    """A copy of 4 GiB, and a product of 8192 x 8192 matrices of random bfloat16."""
    source = torch.randn(2**30, device="cuda")
    target = torch.empty_like(source)
    copy = 2 * source.nbytes / seconds([lambda: target.copy_(source)])
    a, b = torch.randn(2, 8192, 8192, device="cuda").to(torch.bfloat16)
    return Rates(copy, 2 * 8192**3 / seconds([lambda: torch.mm(a, b)]))


def inputs(shape: Shape) -> list[tuple[Tensor, ...]]:
    """q, k, v views of packed tensors and the incoming gradient; enough sets that the caches do not hold them."""
    sets = max(1, min(32, 2**28 // shape.moved("forward")))
    made = []
    for _ in range(sets):
        qkv = torch.randn(shape.batch, shape.tokens, 3, shape.heads, shape.width, device="cuda").to(torch.bfloat16)
        grad = torch.randn(shape.batch, shape.tokens, shape.heads, shape.width, device="cuda").to(torch.bfloat16)
        made.append((*qkv.permute(2, 0, 3, 1, 4).unbind(0), grad.transpose(1, 2)))
    return made


def ours(shape: Shape, sets: list[tuple[Tensor, ...]]) -> Iterator[Timing]:
    """Forward and backward of the kernels."""
    from icrl.attention import gpu
    from icrl.attention.problem import Seen

    factor = 1 / torch.arange(1, shape.tokens + 1, device="cuda").float()
    forward = [partial(gpu.forward, x[0], x[1], x[2], factor, Seen()) for x in sets]
    yield Timing(shape, "forward", "ours", seconds(forward))
    backward = [partial(gpu.backward, x[3], x[0], x[1], x[2], factor, Seen()) for x in sets]
    yield Timing(shape, "backward", "ours", seconds(backward))


def eager(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """T x T scores in memory."""
    tokens = q.shape[2]
    scores = torch.relu(q @ k.transpose(2, 3)).tril()
    return (scores @ v) / torch.arange(1, tokens + 1, device=q.device, dtype=q.dtype)[:, None]


def flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax, by SDPA's flash kernel."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def flex(tokens: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """FlexAttention made to compute sum relu(s) v: softmax of log(relu(s) + 1), times its sum, less the sum of v."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def score(s: Tensor, *_: Tensor) -> Tensor:
        return torch.log(torch.relu(s) + 1)

    def causal(_b: Tensor, _h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return i >= j

    compiled: Any = torch.compile(flex_attention, dynamic=False)
    mask = create_block_mask(causal, None, None, tokens, tokens, device="cuda")

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, total = compiled(q, k, v, score_mod=score, block_mask=mask, scale=1.0, return_lse=True)
        whole = out * total.exp()[..., None] - v.float().cumsum(2)
        rows = torch.arange(1, q.shape[2] + 1, device=q.device)[:, None]
        result: Tensor = (whole / rows).to(q.dtype)
        return result

    return attend


def rival(shape: Shape, way: str, attend: Callable[..., Tensor], x: tuple[Tensor, ...]) -> Iterator[Timing]:
    """Forward, and backward by autograd, between events; what it cannot do is a row with its reason."""
    q, k, v = (y.contiguous().requires_grad_() for y in x[:3])

    def timed(work: Callable[[], object]) -> float:
        return statistics.median([between_events(work) for _ in range(10)][3:])

    try:
        with torch.no_grad():
            yield Timing(shape, "forward", way, timed(lambda: attend(q, k, v)), "single calls, launches included")
        out = attend(q, k, v)
        backward = timed(lambda: torch.autograd.grad(out, (q, k, v), x[3], retain_graph=True))
        yield Timing(shape, "backward", way, backward, "single calls, launches included")
    except Exception as error:  # a rival that this torch cannot run must not end the benchmark
        yield Timing(shape, "backward", way, None, f"{type(error).__name__}: {str(error).splitlines()[0][:80]}")


def two_products(q: Tensor, cache: Tensor) -> Tensor:
    """Decoding in torch: the scores go through memory."""
    keys, values = cache.permute(2, 0, 3, 1, 4).unbind(0)
    return torch.relu(q[:, :, None] @ keys.transpose(2, 3)) @ values


def decoding() -> Iterator[DecodeTiming]:
    """One step at a full cache: ours, and two products with relu between in torch."""
    from icrl.attention.gpu.decode import append_and_attend

    for n, heads, width, tokens in DECODE:
        q, k, v = torch.randn(3, n, heads, width, device="cuda").to(torch.bfloat16)
        sets = max(1, min(4, 2**28 // (4 * n * heads * tokens * width)))
        caches = [torch.randn(n, tokens + 1, 2, heads, width, device="cuda").to(torch.bfloat16) for _ in range(sets)]
        lengths = torch.full((n,), tokens, dtype=torch.int32, device="cuda")
        work = [partial(append_and_attend, q, k, v, c, lengths) for c in caches]
        yield DecodeTiming(n, heads, width, tokens, "ours", seconds(work))
        work = [partial(two_products, q, c) for c in caches]
        yield DecodeTiming(n, heads, width, tokens, "torch, two products", seconds(work))


def benchmark(started: float) -> tuple[Rates, list[Timing], list[DecodeTiming]]:
    """All timings; ours first, the rivals while the time lasts."""
    rates = measured_rates()
    timings: list[Timing] = []
    for shape in SHAPES:
        timings += ours(shape, inputs(shape))
    decoded = list(decoding())
    for shape in SHAPES:
        scores = shape.batch * shape.heads * shape.tokens**2 * 2
        ways: dict[str, Callable[..., Tensor]] = {"SDPA flash (softmax)": flash}
        if 4 * scores < torch.cuda.get_device_properties(0).total_memory // 4:
            ways["eager T x T"] = eager
        if shape in FLEX:
            ways["FlexAttention"] = flex(shape.tokens)
        for way, attend in ways.items():
            if time.perf_counter() - started > BASELINES_S:
                timings.append(Timing(shape, "forward", way, None, "left out for time"))
                continue
            timings += rival(shape, way, attend, inputs(shape)[0])
    return rates, timings, decoded


def device() -> dict[str, str]:
    """Name, driver and versions."""
    import triton

    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    ran = subprocess.run(query, capture_output=True, text=True, check=False)
    return {
        "device": torch.cuda.get_device_name(),
        "driver": ran.stdout.splitlines()[0] if ran.returncode == 0 and ran.stdout else "unknown",
        "cuda": str(torch.version.cuda),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
    }


def main(check_only: bool = False, folder: Path = RESULTS) -> int:  # noqa: FBT001, FBT002
    """Checks, times, writes attention-gpu-<device>.json and .md into `folder`; the exit code."""
    if not torch.cuda.is_available():
        print("error: attention --gpu needs a CUDA device, found none; the checks without one are in docs/gpu.md")
        return 2
    from benchmarks.attention_gpu_check import run_checks, sanitizer

    started = time.perf_counter()
    found = run_checks()
    failed = [x for x in found if not x.passed]
    for x in failed:
        print(f"FAILED {x.name}: error {x.error:.2e}, allowed {x.allowed:.0e}, repeats {x.repeats}")
    watched = sanitizer()
    print(f"{len(found) - len(failed)} of {len(found)} checks passed; compute-sanitizer: {watched}")
    broken = bool(failed) or watched.startswith("FAILED")
    if check_only or broken:
        return 1 if broken else 0
    rates, timings, decoded = benchmark(started)
    reached = targets(timings, rates)
    about = device()
    page = [
        f"# ReLU attention on {about['device']}",
        "",
        ", ".join(f"{name} {value}" for name, value in about.items() if name != "device") + ".",
        f"Copy {rates.copy / 1e12:.2f} TB/s, matmul {rates.matmul / 1e12:.0f} TFLOP/s in this run. "
        f"{len(found)} checks passed; compute-sanitizer: {watched}.",
        "",
        *target_rows(reached),
        "",
        *timing_rows(timings, rates),
        "",
        *decode_rows(decoded, rates),
        "",
        f"Ours: median of graph replays; the rivals: of single calls. {time.perf_counter() - started:.0f} s in all.",
    ]
    folder.mkdir(exist_ok=True)
    name = folder / f"attention-gpu-{about['device'].replace(' ', '-').lower()}"
    name.with_suffix(".md").write_text("\n".join(page) + "\n")
    record = {
        "on": about,
        "rates": dataclasses.asdict(rates),
        "checks": [dataclasses.asdict(x) for x in found],
        "sanitizer": watched,
        "targets": [dataclasses.asdict(x) for x in reached],
        "timings": [dataclasses.asdict(x) for x in timings],
        "decode": [dataclasses.asdict(x) for x in decoded],
    }
    name.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")
    print("\n".join(page))
    return 0 if all(x.met for x in reached) else 1
