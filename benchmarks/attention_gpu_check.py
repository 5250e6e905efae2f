"""Correctness of the Triton kernels on the device: every shipped tile against float64, repeats, NaN-poisoned outputs.

Needs torch, Triton and a CUDA device. Run by itself it is the small subset that `compute-sanitizer` watches.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from icrl.attention import gpu
from icrl.attention.gpu.layout import is_packed
from icrl.attention.problem import Seen

TOLERANCE = {torch.float32: 1e-6, torch.float16: 6e-4, torch.bfloat16: 5e-3}
SANITIZER_S = 100


@dataclass(frozen=True)
class Check:
    """The largest error of out, dq, dk, dv, ||a - b|| / ||b||, and whether all held."""

    name: str
    error: float
    allowed: float
    repeats: bool
    """Bit-equal over repeats."""

    @property
    def passed(self) -> bool:
        """A NaN is not at most anything."""
        return self.error <= self.allowed and self.repeats


def definition(q: Tensor, k: Tensor, v: Tensor, factor: Tensor, seen: Seen) -> Tensor:
    """T x T scores, for float64 inputs that may need a gradient."""
    i = torch.arange(q.shape[2], device=q.device)[:, None] + seen.offset
    j = torch.arange(k.shape[2], device=q.device)
    mask = (j <= i) if seen.causal else (j >= 0).expand(q.shape[2], -1)
    if seen.window is not None:
        mask = mask & (j > i - seen.window)
    if seen.documents is not None:
        document = torch.bucketize(j, seen.documents[1:], right=True)
        mask = mask & (document[:, None] == document)
    group = q.shape[1] // k.shape[1]
    scores = q @ k.repeat_interleave(group, 1).transpose(2, 3)
    weights = torch.relu(scores.masked_fill(~mask, 0))
    return weights @ v.repeat_interleave(group, 1) * factor.double()[:, None]


def check(name: str, q: Tensor, k: Tensor, v: Tensor, seen: Seen, repeats: int = 3) -> Check:
    """Forward and backward of one problem."""
    assert (reason := gpu.refusal(q, k, v, seen)) is None, reason
    rows = torch.arange(1, q.shape[2] + 1, device=q.device) + seen.offset
    factor = 0.7 / rows.float()
    grad = torch.randn(*q.shape[:3], v.shape[3], device=q.device).to(q.dtype)
    runs = [(gpu.forward(q, k, v, factor, seen), *gpu.backward(grad, q, k, v, factor, seen)) for _ in range(repeats)]
    assert is_packed(*runs[0][1:]) or not is_packed(q, k, v)
    same = all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))
    wide = [x.detach().double().requires_grad_() for x in (q, k, v)]
    out = definition(wide[0], wide[1], wide[2], factor, seen)
    wanted = (out.detach(), *torch.autograd.grad(out, wide, grad.double()))
    errors = torch.stack(
        [(a.double() - b).norm() / b.norm().clamp(min=1e-30) for a, b in zip(runs[0], wanted, strict=True)]
    )
    return Check(name, float(errors.max()), TOLERANCE[q.dtype], same)


def problems(small: bool, device: str = "cuda") -> Iterator[tuple[str, Tensor, Tensor, Tensor, Seen]]:  # noqa: FBT001
    """Every tile of the table for every type, ragged, packed and not; small: one of each kind."""

    def packed(dtype: torch.dtype, batch: int, heads: int, tokens: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
        qkv = torch.randn(batch, tokens, 3, heads, width, device=device).to(dtype)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    widths, lengths = ((8, 64), (100, 530)) if small else ((1, 8, 16, 32, 64, 128, 256), (1, 113, 200, 400, 512, 1023))
    for dtype in TOLERANCE:
        for width in widths:
            for tokens in lengths:
                yield (
                    f"{dtype} T={tokens} D={width}",
                    *packed(dtype, 32 if tokens == 1 else 4, 3, tokens, width),
                    Seen(),
                )
    dtype = torch.bfloat16
    for width in widths:
        n_queries, n_keys = (70, 200) if small else (300, 700)
        sizes = ((4, n_queries), (2, n_keys), (2, n_keys))
        q, k, v = (torch.randn(2, h, n, width, device=device).to(dtype) for h, n in sizes)
        yield f"grouped, offset D={width}", q, k, v, Seen(offset=n_keys - n_queries)
        yield f"grouped, window D={width}", q, k, v, Seen(offset=n_keys - n_queries, window=130)
        yield f"grouped, not causal D={width}", q, k, v, Seen(causal=False)
        yield f"unequal value width D={width}", q, k, v[..., : max(1, width // 2)], Seen(offset=n_keys - n_queries)
        for lengths_ in ((1, 64, 30, 35),) if small else ((1, 64, 300, 35), (700, 1, 90)):
            starts = torch.tensor([0, *torch.tensor(lengths_).cumsum(0)], dtype=torch.int32, device=device)
            documents = Seen(documents=starts, longest=max(lengths_))
            yield f"documents {lengths_} D={width}", *packed(dtype, 1, 3, sum(lengths_), width), documents


def poison() -> None:
    """Fresh memory is NaN from here on: an element that nobody wrote shows."""
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]


def unpoison() -> None:
    """Back to plain memory, for the timings."""
    torch.use_deterministic_algorithms(mode=False)


def check_decode(dtype: torch.dtype, heads: int, key_heads: int, width: int, device: str = "cuda") -> Check:
    """Staggered lengths, the cache NaN beyond them."""
    from icrl.attention.gpu.decode import append_and_attend

    lengths = torch.tensor([0, 1, 17, 63, 200, 255], dtype=torch.int32, device=device)
    n = len(lengths)
    q = torch.randn(n, heads, width, device=device).to(dtype)
    k, v = torch.randn(2, n, key_heads, width, device=device).to(dtype)
    cache = torch.randn(n, 256, 2, key_heads, width, device=device).to(dtype)
    beyond = torch.arange(256, device=device) >= lengths[:, None]
    cache[beyond] = torch.nan
    out = append_and_attend(q, k, v, cache, lengths, 0.7)
    same = torch.equal(out, append_and_attend(q, k, v, cache, lengths, 0.7))
    held = cache.double().nan_to_num().repeat_interleave(heads // key_heads, 3)
    weights = torch.relu(torch.einsum("nhd,nthd->nth", q.double(), held[:, :, 0]))
    want = torch.einsum("nth,nthd->nhd", weights, held[:, :, 1]) * 0.7 / (lengths[:, None, None] + 1)
    error = float((out.double() - want).norm() / want.norm())
    return Check(f"decode {dtype} H={heads} G={key_heads} D={width}", error, TOLERANCE[dtype], same)


def run_checks(small: bool = False, device: str = "cuda") -> list[Check]:  # noqa: FBT001, FBT002
    """All checks; each may also raise."""
    torch.manual_seed(0)
    poison()
    try:
        found = [check(*problem) for problem in problems(small, device)]
        shapes = ((4, 4, 8), (4, 2, 16), (3, 3, 5), (32, 8, 128))
        return found + [check_decode(dtype, *shape, device) for dtype in TOLERANCE for shape in shapes]
    finally:
        unpoison()


def sanitizer() -> str:
    """What compute-sanitizer's memcheck says of the small subset, in a word."""
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not os.path.exists(tool):  # noqa: PTH110
        return "not run: compute-sanitizer is not installed"
    command = [
        tool,
        "--tool",
        "memcheck",
        "--error-exitcode",
        "9",
        sys.executable,
        "-m",
        "benchmarks.attention_gpu_check",
    ]
    try:
        ran = subprocess.run(
            command,
            env=os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
            capture_output=True,
            text=True,
            timeout=SANITIZER_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"not finished within {SANITIZER_S} s"
    last = (ran.stdout + ran.stderr).strip().splitlines()[-1:]
    return "clean" if ran.returncode == 0 else f"FAILED with exit code {ran.returncode}: {' '.join(last)}"


if __name__ == "__main__":
    sys.exit(0 if all(found.passed for found in run_checks(small=True)) else 1)
