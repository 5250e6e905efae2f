"""The cache of decoding against attention's specification: every backend, type, layout of heads, and staggered resets.

Every cache starts full of NaN: what lies beyond an environment's length must reach nothing.
"""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.fx.experimental.proxy_tensor import make_fx

from icrl import native
from icrl.attention import KVCache, Slot
from icrl.attention.decode.native import SOURCE
from icrl.attention.reference import relu_attention_reference, softmax_attention_reference

REFERENCE = {"relu": relu_attention_reference, "softmax": softmax_attention_reference}
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 5e-3}
needs_compiler = pytest.mark.skipif(native.refusal(SOURCE) is not None, reason=f"needs {native.refusal(SOURCE)}")
KERNELS = [
    pytest.param("native", "relu", marks=needs_compiler, id="native"),
    pytest.param("plain", "relu", id="plain"),
    pytest.param("plain", "softmax", id="plain-softmax"),
]
SHAPES = {  # H, G, D, E
    "practical": (4, 4, 8, 8),
    "theory": (2, 2, 43, 43),
    "grouped": (6, 2, 5, 3),
    "shared": (3, 1, 1, 17),
}
CHUNKS = {
    "one": [1] * 40,
    "two": [1] + [2] * 19,
    "prefill": [37, 1, 2],
    "many": [5, 20, 15],
}


def poisoned(slots, batch, capacity, **options):
    cache = KVCache(slots, batch, capacity, **options)
    for layer in cache.layers:
        for memory in vars(layer).values():
            if isinstance(memory, torch.Tensor):
                memory.fill_(torch.nan)
    return cache


def tokens(shape, n_tokens, *, batch=3, dtype=torch.float64, seed=0):
    """q, k, v as views of one packed projection, tokens before heads."""
    heads, key_heads, key_width, value_width = shape
    generator = torch.Generator().manual_seed(seed)
    sizes = (heads * key_width, key_heads * key_width, key_heads * value_width)
    packed = torch.randn(batch, n_tokens, sum(sizes), dtype=dtype, generator=generator)
    parts = zip(packed.split(sizes, -1), (heads, key_heads, key_heads), strict=True)
    return [x.unflatten(-1, (n, -1)).transpose(1, 2) for x, n in parts]


def specification(kind, q, k, v, scale):
    share = q.shape[1] // k.shape[1]
    q, k, v = q.double(), k.double().repeat_interleave(share, 1), v.double().repeat_interleave(share, 1)
    return REFERENCE[kind](q, k, v, scale)


def error(out, expected):
    return float((out.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize(("backend", "kind"), KERNELS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)
def test_decoding_equals_one_pass(backend, kind, shape, chunks):
    for dtype, tolerance in TOLERANCE.items():
        q, k, v = tokens(shape, sum(chunks), dtype=dtype)
        cache = poisoned([Slot(*shape[1:])] * 2, 3, 40, kind=kind, dtype=dtype, backend=backend)
        for _ in range(2):  # the second time after a reset
            outs = []
            for new in (slice(stop - n, stop) for n, stop in zip(chunks, itertools.accumulate(chunks), strict=True)):
                cache.append_and_attend(0, q[:, :, new], -k[:, :, new], v[:, :, new])  # another layer's memory
                outs.append(cache.append_and_attend(1, q[:, :, new], k[:, :, new], v[:, :, new], 0.7))
                cache.advance(new.stop - new.start)
            expected = specification(kind, q, k, v, 0.7)
            assert error(torch.cat(outs, 2), expected) < tolerance, dtype
            cache.reset()


@given(data=st.data())
@settings(max_examples=25, deadline=None)
@pytest.mark.parametrize(("backend", "kind"), KERNELS)
def test_environments_that_start_apart_equal_each_alone(backend, kind, data):
    """Environments are reset at any time; padding stands before the first token of some."""
    batch, shape, n_new = 4, (2, 1, 3, 5), data.draw(st.integers(1, 3))
    cache = poisoned([Slot(*shape[1:])], batch, 30, kind=kind, dtype=torch.float64, backend=backend)
    steps = data.draw(st.lists(st.sets(st.integers(0, batch - 1)), min_size=1, max_size=9))
    held = [tokens(shape, 0, batch=1) for _ in range(batch)]
    for step, starting in enumerate(steps):
        cache.reset(np.array(sorted(starting), np.int64))
        q, k, v = tokens(shape, n_new, batch=batch, seed=step)
        padding = [int(cache.lengths[b] == 0) * (n_new - 1) for b in range(batch)]
        cache.padding = torch.tensor(padding, dtype=torch.int32)
        out = cache.append_and_attend(0, q, k, v, 0.7)
        cache.advance(n_new)
        for b in range(batch):
            own = slice(padding[b], n_new)
            old = [x[:, :, :0] for x in held[b]] if b in starting else held[b]
            held[b] = [torch.cat([x, y[b : b + 1, :, own]], 2) for x, y in zip(old, (q, k, v), strict=True)]
            expected = specification(kind, *held[b], 0.7)[:, :, -(n_new - padding[b]) :]
            torch.testing.assert_close(out[b : b + 1, :, own], expected, rtol=0, atol=1e-13)
            assert not out[b, :, : padding[b]].isnan().any()
            assert int(cache.lengths[b]) == held[b][0].shape[2] <= cache.longest


@needs_compiler
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_bits_of_a_row_are_its_keys_alone(dtype, monkeypatch):
    """Not the batch's, the threads', or those of the other rows of a call."""
    monkeypatch.setattr("icrl.attention.decode.native._SMALL", 0)
    q, k, v = tokens((4, 2, 7, 9), 70, batch=13, dtype=dtype)

    def decode(chunks, rows=slice(None), threads=1):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            cache = poisoned([Slot(2, 7, 9)], len(q[rows]), 70, dtype=dtype, backend="native")
            outs = []
            for part in zip(*(x[rows].split(chunks, 2) for x in (q, k, v)), strict=True):
                outs.append(cache.append_and_attend(0, *part))
                cache.advance(part[0].shape[2])
            return torch.cat(outs, 2)
        finally:
            torch.set_num_threads(before)

    once = decode([70])
    for other in (decode([1] * 70), decode([2] * 35), decode([70], threads=3)):
        assert torch.equal(once, other)
    assert torch.equal(once[4:5], decode([2] * 35, slice(4, 5)))


@pytest.mark.parametrize(("backend", "kind"), KERNELS)
def test_nan_reaches_those_who_see_it_and_nobody_else(backend, kind):
    q, k, v = tokens((2, 2, 4, 4), 6)
    expected = specification(kind, q, k, v, 1.0)
    for bad in (k, v):
        kept = bad[1, 0, 3].clone()
        bad[1, 0, 3] = torch.nan
        cache = poisoned([Slot(2, 4, 4)], 3, 6, kind=kind, dtype=torch.float64, backend=backend)
        outs = []
        for part in zip(*(x.split(2, 2) for x in (q, k, v)), strict=True):  # token 3 is the second of a call
            outs.append(cache.append_and_attend(0, *part))
            cache.advance(2)
        got, seen = torch.cat(outs, 2), torch.zeros(3, 2, 6, dtype=torch.bool)
        seen[1, 0, 3:] = True
        assert got[seen].isnan().all()
        torch.testing.assert_close(got[~seen], expected[~seen], rtol=0, atol=1e-13)
        bad[1, 0, 3] = kept


@pytest.mark.parametrize(("backend", "kind"), KERNELS)
def test_layers_of_different_shapes_share_a_cache(backend, kind):
    slots = [Slot(1, 2, 7), Slot(3, 5, 1)]
    cache = poisoned(slots, 2, 8, kind=kind, dtype=torch.float64, backend=backend)
    assert cache.nbytes >= 2 * 8 * 8 * sum(slot.heads * (slot.key_width + slot.value_width) for slot in slots)
    inputs = [tokens((slot.heads, *slot), 8, batch=2) for slot in slots]
    for t in range(8):
        for layer, (q, k, v) in enumerate(inputs):
            new = slice(t, t + 1)
            out = cache.append_and_attend(layer, q[:, :, new], k[:, :, new], v[:, :, new])
            torch.testing.assert_close(out, specification(kind, q, k, v, 1.0)[:, :, new], rtol=0, atol=1e-13)
        cache.advance(1)


@pytest.mark.parametrize("kind", ["relu", "softmax"])
def test_a_recorded_step_serves_every_token(kind):
    """Lengths are data of a step, as a CUDA graph needs it: its operations, recorded once, are those of every token."""
    cache = poisoned([Slot(1, 3, 5)], 2, 12, kind=kind, dtype=torch.float64, backend="plain")
    cache.reset(range(2))
    q, k, v = tokens((2, 1, 3, 5), 12, batch=2)
    lengths, memory = cache.lengths, cache.layers[0]

    def step(lengths, keys, values, q, k, v):
        cache.lengths, memory.keys, memory.values = lengths, keys, values
        out = cache.append_and_attend(0, q, k, v)
        cache.advance(2)
        return out

    state = (lengths, memory.keys, memory.values)
    recorded = make_fx(step)(*(x.clone() for x in state), *(x[:, :, :2] for x in (q, k, v)))
    outs = [recorded(*state, *part) for part in zip(*(x.split(2, 2) for x in (q, k, v)), strict=True)]
    assert lengths.tolist() == [12, 12]
    torch.testing.assert_close(torch.cat(outs, 2), specification(kind, q, k, v, 1.0), rtol=0, atol=1e-13)


@needs_compiler
def test_the_fastest_that_can_is_taken():
    slot, cpu = [Slot(1, 2, 2)], {"batch": 1, "capacity": 2}
    assert KVCache(slot, **cpu).backend == "native"
    assert KVCache(slot, **cpu, kind="softmax").backend == "plain"
    assert KVCache(slot, **cpu, dtype=torch.float16).backend == "plain"
    with pytest.raises(ValueError, match=r"backend = native: .* ReLU attention, got softmax; backend='auto'"):
        KVCache(slot, **cpu, kind="softmax", backend="native")
    with pytest.raises(ValueError, match="backend = metal: expected auto, native or device or plain"):
        KVCache(slot, **cpu, backend="metal")


def test_without_a_compiler_torch_decodes(monkeypatch):
    monkeypatch.setenv("ICRL_NATIVE", "0")
    assert KVCache([Slot(1, 2, 2)], 1, 2).backend == "plain"
    with pytest.raises(ValueError, match="ICRL_NATIVE = 0 turns native code off"):
        KVCache([Slot(1, 2, 2)], 1, 2, backend="native")


@pytest.mark.parametrize(("backend", "kind"), KERNELS)
def test_the_default_device_does_not_matter(backend, kind):
    q, k, v = tokens((2, 2, 4, 4), 3)
    torch.set_default_device("meta")
    try:
        cache = KVCache([Slot(2, 4, 4)], 3, 3, kind=kind, dtype=q.dtype, backend=backend)
        cache.reset([1])
        out = cache.append_and_attend(0, q, k, v)
    finally:
        torch.set_default_device(None)
    assert error(out, specification(kind, q, k, v, 1.0)) <= TOLERANCE[q.dtype]


@pytest.mark.parametrize(("backend", "kind"), KERNELS)
def test_a_cache_made_in_inference_mode_serves_outside_it(backend, kind):
    q, k, v = tokens((2, 2, 4, 4), 3)
    with torch.inference_mode():
        cache = KVCache([Slot(2, 4, 4)], 3, 3, kind=kind, dtype=q.dtype, backend=backend)
        cache.append_and_attend(0, q, k, v)
        cache.advance(3)
    for which in ([0, 1, 2], None):
        cache.reset(which)
        with torch.no_grad():
            out = cache.append_and_attend(0, q, k, v)
            cache.advance(3)
        assert error(out, specification(kind, q, k, v, 1.0)) <= TOLERANCE[q.dtype]


def test_resetting_nobody_changes_nothing():
    for batch in (0, 2):
        cache = KVCache([Slot(1, 2, 2)], batch, 5)
        cache.advance(2)
        cache.reset([])
        assert cache.lengths.tolist() == [2] * batch


def test_padding_is_that_of_one_step():
    cache = KVCache([Slot(1, 2, 2)], 2, 5)
    cache.padding = torch.tensor([1, 0], dtype=torch.int32)
    cache.advance(2)
    assert cache.padding is None
    cache.advance(1)
    assert cache.lengths.tolist() == [2, 3]


def test_the_capacity_is_that_of_the_longest():
    zeros = [torch.zeros(2, 1, 2, 2)] * 3
    cache = KVCache([Slot(1, 2, 2)], 2, 5)
    for _ in range(2):
        cache.append_and_attend(0, *zeros)
        cache.advance(2)
    with pytest.raises(ValueError, match="6 tokens in a cache for 5: the horizon is over, reset first"):
        cache.append_and_attend(0, *zeros)
    cache.reset([1])
    with pytest.raises(ValueError, match="6 tokens in a cache for 5"):
        cache.append_and_attend(0, *zeros)
    cache.reset(torch.tensor([True, False]))
    cache.append_and_attend(0, *zeros)
    cache.replayed(2)
    cache.replayed(2)
    with pytest.raises(ValueError, match="6 tokens in a cache for 5"):
        cache.replayed(2)
    assert cache.capacity == 5


def test_refusals():
    cache = KVCache([Slot(2, 3, 4)], 2, 5)
    q, k, v = torch.zeros(2, 2, 1, 3), torch.zeros(2, 2, 1, 3), torch.zeros(2, 2, 1, 4)
    with pytest.raises(ValueError, match=r"v \(2, 2, 1, 3\): expected .* E = 4"):
        cache.append_and_attend(0, q, k, v[..., :3])
    with pytest.raises(ValueError, match="3 heads: expected a multiple of the cache's 2"):
        cache.append_and_attend(0, torch.zeros(2, 3, 1, 3), k, v)
    with pytest.raises(ValueError, match=r"q torch.float64.* expected torch.float32"):
        cache.append_and_attend(0, q.double(), k, v)
    with pytest.raises(ValueError, match=r"q meta, k cpu, v cpu: expected cpu, the cache's"):
        cache.append_and_attend(0, q.to("meta"), k, v)
    with pytest.raises(ValueError, match=r"no backward pass: call it under torch.inference_mode"):
        cache.append_and_attend(0, q.requires_grad_(), k, v)
    with pytest.raises(ValueError, match="which = 2: expected an environment from 0 to 1"):
        cache.reset([0, 2])
    with pytest.raises(ValueError, match=r"which = \[0\.69\d*\]: expected indices of environments or a mask"):
        cache.reset([0.7])
    with pytest.raises(ValueError, match=r"mask of shape \(3,\): expected \(2,\)"):
        cache.reset(torch.ones(3, dtype=torch.bool))
