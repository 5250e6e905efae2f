"""The Triton kernels under Triton's interpreter, which reads TRITON_INTERPRET when a kernel is decorated: so a process
of its own, `python -m tests.interpreted GROUP`, that prints {check: [error, allowed]} as JSON.

The interpreter computes what the kernels say on NumPy arrays; three of its faults are mended here. It cannot see races,
barriers, layouts or the compiler's errors, and it takes the plain forms of what is PTX on a device.
"""

import json
import os
import sys
from dataclasses import dataclass, fields, replace

os.environ["TRITON_INTERPRET"] = "1"

import ml_dtypes
import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

from benchmarks import attention_gpu_check
from icrl.attention import KVCache, Slot, gpu
from icrl.attention.gpu import decode, layout
from icrl.attention.problem import Seen
from icrl.attention.reference import relu_attention_reference

TOLERANCE = {torch.float32: 1e-6, torch.float16: 6e-4, torch.bfloat16: 5e-3}


def mend_the_interpreter() -> None:
    """Loop bounds under numpy >= 2.4, products of bfloat16 (it multiplied bits), rounding to it (it truncated)."""
    patch_tensor, dot = interpreter._patch_lang_tensor, interpreter.InterpreterBuilder.create_dot
    cast, convert = interpreter.InterpreterBuilder.cast_impl, interpreter.InterpreterBuilder.create_fp_to_fp

    def patched_tensor(tensor, scope):
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    def as_float32(handle):
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return interpreter.TensorHandle(handle.data.view(ml_dtypes.bfloat16).astype(np.float32), tl.float32)

    def patched_dot(self, a, b, d, *rest):
        return dot(self, as_float32(a), as_float32(b), d, *rest)

    def rounding(original):
        def patched(self, src, dst_type, *rest):
            if src.dtype.scalar == tl.float32 and dst_type.scalar == tl.bfloat16:
                data = src.data.astype(ml_dtypes.bfloat16).view(np.uint16)
                return interpreter.TensorHandle(data, tl.bfloat16)
            return original(self, src, dst_type, *rest)

        return patched

    interpreter._patch_lang_tensor = patched_tensor
    builder = interpreter.InterpreterBuilder
    builder.create_dot = patched_dot
    builder.cast_impl = rounding(cast)
    builder.create_fp_to_fp = rounding(convert)
    for name in ("create_fp_ext", "create_fp_trunc"):
        setattr(builder, name, lambda self, src, dst_type: self.cast_impl(src, dst_type))


@dataclass(frozen=True)
class Case:
    """One problem. `packed`: q, k, v are views of one [B,N,3,H,D]; otherwise of [B,N,H,D] each."""

    dtype: torch.dtype
    tokens: int
    width: int
    queries: int | None = None
    value_width: int | None = None
    batch: int = 1
    heads: int = 2
    key_heads: int | None = None
    window: int | None = None
    causal: bool = True
    documents: tuple[int, ...] | None = None
    packed: bool = False
    past: int = 0
    """Positions by which the first query stands further right than T - N."""

    def __str__(self) -> str:
        changed = [f"{f.name}={getattr(self, f.name)}" for f in fields(self) if getattr(self, f.name) != f.default]
        return ", ".join(changed)

    def seen(self) -> Seen:
        """Its `Seen`."""
        documents = None if self.documents is None else torch.tensor([0, *np.cumsum(self.documents)], dtype=torch.int32)
        longest = None if self.documents is None else max(self.documents)
        offset = self.tokens - (self.queries or self.tokens) + self.past
        return Seen(self.causal, offset, self.window, documents, longest)

    def inputs(self) -> tuple[torch.Tensor, ...]:
        """q, k, v, the incoming gradient, the factor."""
        generator = torch.Generator().manual_seed(self.tokens + 1000 * self.width)
        batch, n, width, e = self.batch, self.queries or self.tokens, self.width, self.value_width or self.width

        def draw(*shape):
            return torch.randn(*shape, generator=generator).to(self.dtype)

        if self.packed:
            q, k, v = draw(batch, n, 3, self.heads, width).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            g = self.key_heads or self.heads
            q = draw(batch, n, self.heads, width).transpose(1, 2)
            k = draw(batch, self.tokens, g, width).transpose(1, 2)
            v = draw(batch, self.tokens, g, e).transpose(1, 2)
        grad = draw(batch, n, self.heads, e).transpose(1, 2)
        position = torch.arange(1, n + 1) + self.seen().offset
        return q, k, v, grad, (0.7 / position).float()


def expected(case: Case, q, k, v, grad, factor) -> list[torch.Tensor]:
    """out, dq, dk, dv in float64 by the definition, T x T and autograd."""
    q, k, v = (x.double().requires_grad_() for x in (q, k, v))
    seen, n, t = case.seen(), q.shape[2], k.shape[2]
    i, j = torch.arange(n)[:, None] + seen.offset, torch.arange(t)
    mask = torch.ones(n, t, dtype=torch.bool)
    if seen.causal:
        mask &= j <= i
    if seen.window is not None:
        mask &= j > i - seen.window
    if seen.documents is not None:
        document = torch.bucketize(j, seen.documents[1:], right=True)
        mask &= document[:, None] == document[None, :]
    group = q.shape[1] // k.shape[1]
    scores = torch.einsum("bhid,bhjd->bhij", q, k.repeat_interleave(group, 1)).masked_fill(~mask, 0)
    out = torch.einsum("bhij,bhje->bhie", torch.relu(scores), v.repeat_interleave(group, 1)) * factor.double()[:, None]
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), grad.double())]


def check(case: Case, results: dict[str, list[float]]) -> None:
    """Forward and backward against `expected`; every output was NaN before."""
    q, k, v, grad, factor = case.inputs()
    seen = case.seen()
    assert gpu.refusal(q, k, v, seen) is None
    got = [gpu.forward(q, k, v, factor, seen), *gpu.backward(grad, q, k, v, factor, seen)]
    if case.packed:
        assert layout.is_packed(*got[1:])
    for name, a, b in zip(("out", "dq", "dk", "dv"), got, expected(case, q, k, v, grad, factor), strict=True):
        assert a.shape == b.shape, (case, name)
        assert a.dtype == case.dtype, (case, name)
        error = float((a.double() - b).norm() / b.norm().clamp(min=1e-30))
        results[f"{name}: {case}"] = [error, TOLERANCE[case.dtype]]


def poisoned_memory() -> None:
    """Fresh memory is full of NaN from here on, so that an element nobody wrote shows."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True


def check_decode(dtype: torch.dtype, shape: tuple[int, int, int], results: dict[str, list[float]]) -> None:
    """Staggered lengths in one step, against the definition; the cache, NaN beyond them, changes in one place only."""
    heads, key_heads, width = shape
    lengths = torch.tensor([0, 1, 17, 63, 64], dtype=torch.int32)
    n, capacity = len(lengths), 64
    generator = torch.Generator().manual_seed(5)
    packed = torch.randn(n, heads + 2 * key_heads, width, generator=generator).to(dtype)
    q, k, v = packed.split([heads, key_heads, key_heads], 1)
    cache = torch.randn(n, capacity, 2, key_heads, width, generator=generator).to(dtype)
    for row, length in enumerate(lengths.tolist()):
        cache[row, length:] = torch.nan
    before = cache.clone()
    out = decode.append_and_attend(q, k, v, cache, lengths, 0.7)
    for row, length in enumerate(lengths.tolist()[:-1]):
        assert torch.equal(cache[row, length], torch.stack([k[row], v[row]]))
        held = cache[row, : length + 1].double().repeat_interleave(heads // key_heads, 2)
        weights = torch.relu(torch.einsum("hd,thd->th", q[row].double(), held[:, 0]))
        want = torch.einsum("th,thd->hd", weights, held[:, 1]) * 0.7 / (length + 1)
        error = float((out[row].double() - want).norm() / max(want.norm(), 1e-3))  # t = 0: all may be negative
        results[f"decode {dtype} {shape} t={length}"] = [error, TOLERANCE[dtype]]
        before[row, length] = cache[row, length]
    assert out[-1].isnan().all(), "a full cache"
    assert torch.equal(before.nan_to_num(), cache.nan_to_num())


def check_cache(results: dict[str, list[float]]) -> None:
    """`KVCache` on the kernel against one pass: a prefill, then steps of two tokens, then some start anew."""
    generator = torch.Generator().manual_seed(11)
    batch, tokens, heads, width = 3, 14, 2, 8
    q, k, v = torch.randn(3, batch, heads, tokens, width, generator=generator)
    whole = relu_attention_reference(q.double(), k.double(), v.double(), 0.5)
    cache = KVCache([Slot(heads, width, width)], batch, tokens, backend="device")
    cache.layers[0].cache.fill_(torch.nan)
    for start, stop in ((0, 6), (6, 8), (8, 10)):
        out = cache.append_and_attend(0, *(x[:, :, start:stop] for x in (q, k, v)), 0.5)
        error = float((out.double() - whole[:, :, start:stop]).norm() / whole[:, :, start:stop].norm())
        results[f"cache {start}..{stop}"] = [error, TOLERANCE[SINGLE]]
        cache.advance(stop - start)
    cache.reset([1])
    cache.padding = torch.tensor([0, 1, 0], dtype=torch.int32)
    places = torch.tensor([[10, 11], [0, 0], [10, 11]])  # the second starts with one token, behind padding
    rows = torch.arange(batch)[:, None]
    q, k, v = (x.transpose(1, 2)[rows, places].transpose(1, 2) for x in (q, k, v))
    out = cache.append_and_attend(0, q, k, v, 0.5)
    cache.advance(2)
    want = whole.transpose(1, 2)[rows, places].transpose(1, 2)
    error = float((out.double() - want)[:, :, 1].norm() / want[:, :, 1].norm())
    results["cache, one starts anew"] = [error, TOLERANCE[SINGLE]]
    assert cache.lengths.tolist() == [12, 1, 12]


def check_identities(results: dict[str, list[float]]) -> None:
    """What holds bit for bit; a check that fails shows as error 1."""

    def record(name: str, *pairs: tuple[torch.Tensor, torch.Tensor]) -> None:
        results[name] = [0.0 if all(torch.equal(a, b) for a, b in pairs) else 1.0, 0.0]

    for case in (Case(BRAIN, 150, 8, packed=True), Case(HALF, 140, 16, key_heads=1), Case(SINGLE, 70, 8)):
        q, k, v, grad, factor = case.inputs()
        seen = case.seen()
        out, gradients = gpu.forward(q, k, v, factor, seen), gpu.backward(grad, q, k, v, factor, seen)
        j = case.tokens // 2
        later = [x.clone() for x in (q, k, v)]
        for x in later:
            x[:, :, j:] = 3 * x[:, :, j:] - 1
        changed = gpu.forward(*later, factor, seen)
        record(f"causal: {case}", (out[:, :, :j], changed[:, :, :j]))
        assert not torch.equal(out[:, :, j:], changed[:, :, j:])
        later[1][:, :, j:] = torch.nan
        record(f"NaN in later keys: {case}", (out[:, :, :j], gpu.forward(q, later[1], v, factor, seen)[:, :, :j]))
        k_nan = k.clone()
        k_nan[:, :, 3] = torch.nan
        assert gpu.forward(q, k_nan, v, factor, seen)[:, :, 3:].isnan().all(), "NaN among seen scores propagates"
        record(f"q times 4: {case}", (4 * out, gpu.forward(4 * q, k, v, factor, seen)))
        record(f"repeats: {case}", *zip(gradients, gpu.backward(grad, q, k, v, factor, seen), strict=True))
        negative, positive = -q.abs(), k.abs()
        outcomes = (gpu.forward(negative, positive, v, factor, seen),)
        outcomes += gpu.backward(grad, negative, positive, v, factor, seen)
        record(f"negative scores: {case}", *((x, torch.zeros_like(x)) for x in outcomes))
        wider = [torch.cat([x, torch.zeros_like(x[:, :, :9])], 2) for x in (k, v)]
        record(
            f"zero keys at the end: {case}",
            (
                gpu.forward(q, k, v, factor, replace(seen, causal=False)),
                gpu.forward(q, *wider, factor, replace(seen, causal=False)),
            ),
        )
        half = [replace(seen, causal=False), slice(0, 64), slice(64, None)]
        if case.dtype == SINGLE:
            parts = sum(gpu.forward(q, k[:, :, s], v[:, :, s], factor, half[0]) for s in half[1:])
            whole = gpu.forward(q, k, v, factor, half[0])
            results[f"split sums: {case}"] = [float((parts - whole).norm() / whole.norm()), TOLERANCE[SINGLE]]


def check_far(results: dict[str, list[float]]) -> None:
    """Batches, heads and an incoming gradient that lie 2^31 elements apart: address space, hardly any memory."""
    torch.utils.deterministic.fill_uninitialized_memory = False
    space = torch.empty(2**31 + 2**12, dtype=BRAIN)
    torch.utils.deterministic.fill_uninitialized_memory = True
    for name, shape, strides in (
        ("batches", (2, 1, 5, 16), (2**31, 0, 16, 1)),
        ("heads", (1, 2, 5, 16), (0, 2**31, 16, 1)),
        ("rows of the gradient", (1, 1, 65, 16), (0, 0, 2**25, 1)),
    ):
        q, k, v, grad = torch.randn(4, *shape, generator=torch.Generator().manual_seed(1)).to(BRAIN)
        far = space.as_strided(shape, strides).copy_(grad if "gradient" in name else q)
        factor = torch.ones(shape[2])
        near = [gpu.forward(q, k, v, factor, Seen()), *gpu.backward(grad, q, k, v, factor, Seen())]
        q, grad = (q, far) if "gradient" in name else (far, grad)
        got = [gpu.forward(q, k, v, factor, Seen()), *gpu.backward(grad, q, k, v, factor, Seen())]
        results[name] = [float(max((a - b).abs().max() for a, b in zip(got, near, strict=True))), 0.0]


HALF, BRAIN, SINGLE = torch.float16, torch.bfloat16, torch.float32
MATRIX = [
    Case(SINGLE, 100, 8, packed=True, batch=2),
    Case(BRAIN, 200, 8, packed=True),
    Case(HALF, 130, 16),
    Case(BRAIN, 70, 16, queries=20),
    Case(BRAIN, 97, 3, value_width=5, key_heads=1),
    Case(SINGLE, 65, 1),
    Case(BRAIN, 150, 16, window=40, heads=1),
    Case(SINGLE, 90, 8, causal=False, queries=33),
    Case(BRAIN, 140, 8, documents=(1, 64, 5, 70)),
    Case(BRAIN, 100, 64, packed=True, heads=1),
    Case(HALF, 66, 128, heads=1),
    Case(BRAIN, 530, 8, heads=1),
    Case(BRAIN, 520, 64, heads=2, key_heads=1, queries=70, window=100),
]


WHOLE = [
    # a relative norm over few elements says little
    Case(dtype, tokens, width, value_width=value_width, heads=1, batch=32 if tokens == 1 else 4 if width == 1 else 1)
    for dtype in (BRAIN, HALF, SINGLE)
    for tokens in (1, 64, 113, 203)
    for width, value_width in ((1, 3), (8, 8), (16, 40), (64, 64), (128, 100), (256, 256))
] + [
    Case(BRAIN, 600, 16, batch=2, heads=4, key_heads=2, queries=300, window=130),
    Case(BRAIN, 600, 64, documents=(200, 1, 399)),
    Case(SINGLE, 70, 16, queries=40, past=50),
    Case(BRAIN, 70, 16, queries=40, past=50, window=20),
    Case(HALF, 150, 64, causal=False, queries=90),
    Case(BRAIN, 128, 32, queries=1),
]


def main() -> None:
    """Runs the groups named on the command line."""
    mend_the_interpreter()
    poisoned_memory()
    results: dict[str, list[float]] = {}
    for group in sys.argv[1:]:
        match group:
            case "matrix" | "whole":
                for problem in MATRIX if group == "matrix" else WHOLE:
                    check(problem, results)
            case "decode":
                for dtype, shape in ((BRAIN, (4, 4, 8)), (SINGLE, (4, 2, 16)), (HALF, (3, 3, 5)), (BRAIN, (8, 8, 128))):
                    check_decode(dtype, shape, results)
            case "device":
                found = attention_gpu_check.run_checks(small=True, device="cpu")
                results |= {x.name: [x.error if x.repeats else 1.0, x.allowed] for x in found}
            case "far":
                check_far(results)
            case "cache":
                check_cache(results)
            case "identities":
                check_identities(results)
            case _:
                raise ValueError(f"GROUP = {group}: expected matrix, whole, decode, cache, far, device or identities")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
