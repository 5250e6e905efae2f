"""The C++ kernels of ReLU attention on every instruction set of this machine: against float64, and exact properties."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from icrl import native
from icrl.attention import cpu
from icrl.attention.problem import Seen

ISAS = native.machine_isas()
TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-6, torch.float16: 6e-4, torch.bfloat16: 5e-3}


@pytest.fixture(params=ISAS)
def isa(request, monkeypatch):
    monkeypatch.setenv("ICRL_NATIVE_ISA", request.param)
    return request.param


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def poisoned():
    """Memory that a kernel must fill holds NaN before."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.zeros(1).new_empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)


def documents(*lengths):
    bounds = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32)
    return Seen(documents=bounds, longest=max(lengths))


def visible(n_queries, n_keys, seen):
    """bool [N,T], from the words of `Seen`."""
    position, key = torch.arange(n_queries)[:, None] + seen.offset, torch.arange(n_keys)[None]
    mask = torch.ones(n_queries, n_keys, dtype=torch.bool)
    if seen.causal:
        mask &= key <= position
    if seen.window is not None:
        mask &= key > position - seen.window
    if seen.documents is not None:
        own = torch.bucketize(torch.arange(n_queries), seen.documents[1:].long(), right=True)
        mask &= own[:, None] == own[None]
    return mask


def expected(q, k, v, factor, seen):
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    weights = (q @ k.transpose(2, 3)).relu().masked_fill(~visible(q.shape[2], k.shape[2], seen), 0)
    return factor[:, None] * (weights @ v)


def inputs(batch, heads, groups, n_queries, n_keys, width, value_width, dtype=torch.float32, seed=0):
    """q, k, v, the incoming gradient and the factor."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [
        (batch, heads, n_queries, width),
        (batch, groups, n_keys, width),
        (batch, groups, n_keys, value_width),
        (batch, heads, n_queries, value_width),
    ]
    tensors = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    accumulated = torch.float64 if dtype == torch.float64 else torch.float32
    return *tensors, (0.1 + torch.rand(n_queries, generator=generator)).to(accumulated)


def both_ways(q, k, v, grad, factor, seen):
    return cpu.forward(q, k, v, factor, seen), *cpu.backward(grad, q, k, v, factor, seen)


def assert_right(got, q, k, v, grad, factor, seen):
    wide = [x.detach().double().requires_grad_() for x in (q, k, v)]
    out = expected(*wide, factor.double(), seen)
    want = (out.detach(), *torch.autograd.grad(out, wide, grad.double()))
    for name, a, b in zip(("out", "dq", "dk", "dv"), got, want, strict=True):
        assert a.shape == b.shape
        assert a.dtype == q.dtype
        error = float((a.double() - b).norm() / b.norm().clamp_min(1e-300))
        assert error <= TOLERANCE[q.dtype], (name, q.dtype, error)


CASES = {
    # batch, heads, groups, N, T, D, E, seen
    "one token": (2, 1, 1, 1, 1, 8, 8, Seen()),
    "two tokens": (1, 2, 2, 2, 2, 3, 3, Seen()),
    "paper": (2, 2, 2, 200, 200, 8, 8, Seen()),
    "ragged": (1, 2, 2, 203, 203, 16, 16, Seen()),
    "width 1": (1, 2, 2, 77, 77, 1, 1, Seen()),
    "width 3": (1, 1, 1, 65, 65, 3, 3, Seen()),
    "width 24": (1, 1, 1, 130, 130, 24, 24, Seen()),
    "width 31": (1, 1, 1, 100, 100, 31, 31, Seen()),
    "width 32": (1, 1, 1, 97, 97, 32, 32, Seen()),
    "width 64": (1, 1, 1, 150, 150, 64, 64, Seen()),
    "width 128": (1, 1, 1, 70, 70, 128, 128, Seen()),
    "width 256": (1, 1, 1, 70, 70, 256, 256, Seen()),
    "unequal widths": (1, 2, 2, 90, 90, 16, 40, Seen()),
    "the last 7 of 130": (1, 2, 2, 7, 130, 16, 16, Seen(offset=123)),
    "the last of 333": (2, 1, 1, 1, 333, 8, 8, Seen(offset=332)),
    "first rows of many keys": (1, 1, 1, 20, 90, 8, 8, Seen(offset=5)),
    "rows that see nothing": (1, 1, 1, 40, 30, 8, 8, Seen(offset=-13)),
    "grouped": (2, 6, 2, 75, 75, 8, 16, Seen()),
    "one key head": (1, 4, 1, 66, 66, 16, 8, Seen()),
    "window 1": (1, 1, 1, 70, 70, 8, 8, Seen(window=1)),
    "window 50": (1, 2, 1, 201, 201, 16, 16, Seen(window=50)),
    "window and offset": (1, 1, 1, 33, 140, 8, 8, Seen(offset=107, window=100)),
    "not causal": (1, 2, 2, 60, 101, 16, 16, Seen(causal=False)),
    "documents": (1, 2, 1, 190, 190, 16, 16, documents(1, 70, 0, 9, 110)),
    "documents and window": (
        1,
        2,
        2,
        150,
        150,
        8,
        8,
        Seen(window=20, documents=documents(60, 90).documents, longest=90),
    ),
    "documents, not causal": (
        1,
        1,
        1,
        90,
        90,
        8,
        8,
        Seen(causal=False, documents=documents(40, 50).documents, longest=50),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_float64(case, isa):
    *sizes, seen = CASES[case]
    for dtype in TOLERANCE:
        given_ = inputs(*sizes, dtype=dtype)
        assert_right(both_ways(*given_, seen), *given_, seen)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [5, 16])
def test_reads_and_writes_packed_views_without_a_copy(width, dtype, isa):
    qkv = torch.randn(3, 50, 3, 2, width, generator=torch.Generator().manual_seed(1)).to(dtype)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    grad, factor = torch.randn(3, 50, 2, width).to(dtype).transpose(1, 2), torch.rand(50)
    got = both_ways(q, k, v, grad, factor, Seen())
    assert_right(got, q, k, v, grad, factor, Seen())
    assert got[0].transpose(1, 2).is_contiguous()
    packed = got[1]._base
    assert packed.shape == qkv.shape
    assert packed.is_contiguous()
    assert all(x._base is packed for x in got[2:])
    assert torch.equal(packed, torch.stack([x.transpose(1, 2) for x in got[1:]], 2))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_strides_of_every_kind(dtype, isa):
    q, k, v, grad, factor = inputs(2, 3, 3, 40, 40, 16, 8, dtype=dtype)
    for change in (
        lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
        lambda x: torch.cat([x, x], 3)[..., : x.shape[3]],
        lambda x: x[:1, :1].expand_as(x),
        lambda x: x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
    ):
        changed = [change(x) for x in (q, k, v, grad)]
        got, plain = (both_ways(*(f(x) for x in changed), factor, Seen()) for f in (lambda x: x, torch.clone))
        assert all(torch.equal(a, b) for a, b in zip(got, plain, strict=True))
        assert_right(got, *changed, factor, Seen())


@pytest.mark.parametrize("seen", [Seen(), Seen(window=30), documents(41, 0, 79)], ids=["causal", "window", "documents"])
@pytest.mark.parametrize("poison", [torch.nan, torch.inf, 3e38])
def test_nothing_of_an_unseen_token_reaches_a_row(poison, seen, isa):
    q, k, v, grad, factor = inputs(1, 2, 2, 120, 120, 8, 8)
    before = both_ways(q, k, v, grad, factor, seen)
    mask = visible(120, 120, seen)
    for j in (0, 40, 63, 64, 119):
        # a spoilt token spoils what sees it, in the backward pass also what it sees
        forward = [x.clone() for x in (q, k, v)]
        for x in forward[1:]:
            x[:, :, j] = poison
        after = both_ways(*forward, grad, factor, seen)
        blind = ~mask[:, j]
        assert torch.equal(after[0][:, :, blind], before[0][:, :, blind])
        assert torch.equal(after[1][:, :, blind], before[1][:, :, blind])
        query, incoming = q.clone(), grad.clone()
        query[:, :, j], incoming[:, :, j] = poison, poison
        after = both_ways(query, k, v, incoming, factor, seen)
        unseen = ~mask[j]
        assert all(torch.equal(a[:, :, unseen], b[:, :, unseen]) for a, b in zip(after[2:], before[2:], strict=True))


def test_causality_is_bit_exact(isa):
    q, k, v, _, factor = inputs(2, 2, 2, 137, 137, 8, 8)
    before = cpu.forward(q, k, v, factor, Seen())
    for j in (1, 8, 63, 64, 100, 136):
        changed = [x.clone() for x in (q, k, v)]
        for x in changed:
            x[:, :, j:] = 1e3 * x[:, :, j:] - 1
        after = cpu.forward(*changed, factor, Seen())
        assert torch.equal(before[:, :, :j], after[:, :, :j])
        assert not torch.equal(before[:, :, j:], after[:, :, j:])


@pytest.mark.parametrize("which", range(4))
def test_nan_propagates(which, isa):
    tensors = list(inputs(1, 1, 1, 40, 40, 8, 8))
    tensors[which][0, 0, 5, 3] = torch.nan
    got = both_ways(*tensors, Seen())
    spoilt = got[0][0, 0].isnan().any(1)
    if which == 0:
        assert spoilt.nonzero().flatten().tolist() == [5]
    if which in {1, 2}:
        assert spoilt.nonzero().flatten().tolist() == list(range(5, 40))
    if which == 3:
        assert got[1][0, 0, 5].isnan().any()
        assert got[3][0, 0, :6].isnan().any(1).any()
        assert not got[3][0, 0, 6:].isnan().any()


@given(exponent=st.integers(-8, 8), n_tokens=st.integers(1, 150), width=st.integers(1, 40), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_any_size_and_scaling_by_a_power_of_two_bit_for_bit(exponent, n_tokens, width, seed):
    q, k, v, grad, factor = inputs(1, 2, 1, n_tokens, n_tokens, width, 41 - width, seed=seed)
    plain = both_ways(q, k, v, grad, factor, Seen())
    assert_right(plain, q, k, v, grad, factor, Seen())
    power = 2.0**exponent
    out, dq, dk, dv = both_ways(power * q, k, v, grad, factor, Seen())
    assert torch.equal(out, power * plain[0])
    assert torch.equal(dq, plain[1])
    assert torch.equal(dk, power * plain[2])
    assert torch.equal(dv, power * plain[3])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_negative_scores_give_exact_zeros(dtype, isa):
    q, k, v, grad, factor = inputs(1, 2, 2, 70, 70, 16, 16, dtype=dtype)
    for result in both_ways(q.abs(), -k.abs(), v, grad, factor, Seen()):
        assert torch.count_nonzero(result) == 0


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_the_number_of_threads_and_the_repetition_do_not_show(dtype, isa):
    q, k, v, grad, factor = inputs(5, 6, 3, 160, 160, 8, 8, dtype=dtype)
    seen = Seen()
    first = both_ways(q, k, v, grad, factor, seen)
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        assert all(torch.equal(a, b) for a, b in zip(both_ways(q, k, v, grad, factor, seen), first, strict=True))


def test_batch_entries_and_heads_do_not_touch(isa):
    q, k, v, grad, factor = inputs(3, 4, 2, 50, 50, 8, 8)
    whole = both_ways(q, k, v, grad, factor, Seen())
    for b in range(3):
        for g in range(2):
            heads = slice(2 * g, 2 * g + 2)
            one = (q[b : b + 1, heads], k[b : b + 1, g : g + 1], v[b : b + 1, g : g + 1], grad[b : b + 1, heads])
            for part, all_, of in zip(both_ways(*one, factor, Seen()), whole, (heads, heads, g, g), strict=True):
                assert torch.equal(part[0], all_[b, of if isinstance(of, slice) else slice(g, g + 1)])


def test_the_default_device_does_not_matter():
    given_ = inputs(1, 2, 2, 9, 9, 8, 8)
    torch.set_default_device("meta")
    try:
        got = both_ways(*given_, Seen())
    finally:
        torch.set_default_device(None)
    assert {x.device.type for x in got} == {"cpu"}
    assert_right(got, *given_, Seen())


def test_empty_problems(isa):
    for sizes in [(0, 2, 2, 5, 5, 8, 8), (2, 2, 2, 0, 5, 8, 8), (1, 1, 1, 0, 0, 8, 8), (1, 1, 1, 4, 0, 8, 8)]:
        given_ = inputs(*sizes)
        assert_right(both_ways(*given_, Seen()), *given_, Seen())


def test_documents_that_do_not_ascend_are_caught():
    q, k, v, _, factor = inputs(1, 1, 1, 10, 10, 8, 8)
    for bounds in ([0, 7, 5, 10], [0, 20], [3, 10]):
        seen = Seen(documents=torch.tensor(bounds, dtype=torch.int32), longest=10)
        with pytest.raises(ValueError, match="cu_seqlens: expected to ascend from 0 to the number of tokens"):
            cpu.forward(q, k, v, factor, seen)


def test_refusals_name_the_reason(monkeypatch):
    q, k, v, _, _ = inputs(1, 1, 1, 4, 4, 8, 8)
    assert cpu.refusal(q, k, v, Seen()) is None
    assert "meta" in cpu.refusal(q.to("meta"), k, v, Seen())
    assert "torch.int64" in cpu.refusal(q.long(), k, v, Seen())
    wide = torch.zeros(1, 1, 4, 257)
    assert "up to 256, got 257" in cpu.refusal(q, k, wide, Seen())
    monkeypatch.setenv("ICRL_NATIVE", "0")
    assert cpu.refusal(q, k, v, Seen()) == "ICRL_NATIVE = 0 turns native code off"
