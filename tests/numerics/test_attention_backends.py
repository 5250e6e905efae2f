"""Every backend of ReLU attention against float64, against its definition in loops, and its exact properties."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from icrl.attention import relu_attention, relu_attention_qkvpacked
from icrl.attention.dispatch import BACKENDS, choose
from icrl.attention.problem import Seen
from icrl.attention.reference import relu_attention_reference
from icrl.attention.visible import visible_count, visible_mask

TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-6, torch.float16: 6e-4, torch.bfloat16: 5e-3}
HALVES = [torch.bfloat16, torch.float16]


NEEDS = {"gpu": "a CUDA device", "cpu": "a C++ compiler"}


def refusal(name):
    x = torch.zeros(1, 1, 1, 1)
    try:
        choose(name, x, x, x, Seen())
    except ValueError as error:
        return f"needs {NEEDS[name]}: {error}"
    return None


REFUSALS = {name: refusal(name) for name in BACKENDS}


@pytest.fixture(
    params=[
        pytest.param(name, marks=pytest.mark.skipif(why is not None, reason=str(why))) for name, why in REFUSALS.items()
    ]
)
def backend(request):
    return request.param


def tensors(size, *, dtype=torch.float64, seed=0, grad=False):
    """q [B,H,N,D], k [B,G,T,D], v [B,G,T,E] for size (B,H,G,N,T,D,E)."""
    batch, heads, groups, n_new, n_keys, width, value = size
    generator = torch.Generator().manual_seed(seed)
    shapes = ((batch, heads, n_new, width), (batch, groups, n_keys, width), (batch, groups, n_keys, value))
    return [torch.randn(s, dtype=torch.float64, generator=generator).to(dtype).requires_grad_(grad) for s in shapes]


def definition(q, k, v, *, scale=1.0, causal=True, offset=0, window=None, bounds=None):
    """(1/n_i) sum over the keys that row i sees of relu(scale <q_i, k_j>) v_j, one scalar after the other."""
    out = torch.zeros(*q.shape[:3], v.shape[3], dtype=q.dtype)
    repeats = q.shape[1] // k.shape[1]
    document = [0] * max(q.shape[2], k.shape[2])
    for number, (start, stop) in enumerate(itertools.pairwise(bounds or [])):
        document[start:stop] = [number] * (stop - start)
    for b, h, i in itertools.product(*map(range, q.shape[:3])):
        seen = [
            j
            for j in range(k.shape[2])
            if (not causal or j <= i + offset)
            and (window is None or j > i + offset - window)
            and (bounds is None or document[i] == document[j])
        ]
        for j in seen:
            score = scale * float(q[b, h, i] @ k[b, h // repeats, j])
            out[b, h, i] += max(0.0, score) * v[b, h // repeats, j] / len(seen)
    return out


OPTIONS = {
    "causal": ((2, 2, 2, 7, 7, 3, 3), {}),
    "last rows": ((1, 2, 1, 3, 7, 3, 4), {"offset": 4}),
    "first rows": ((1, 2, 2, 3, 7, 3, 1), {"offset": 0}),
    "beyond the keys": ((1, 1, 1, 6, 3, 2, 2), {"offset": 2, "window": 3}),
    "all keys": ((1, 4, 2, 5, 7, 3, 2), {"causal": False}),
    "window": ((1, 4, 1, 9, 9, 3, 3), {"window": 4}),
    "documents": ((1, 2, 2, 9, 9, 3, 3), {"bounds": [0, 4, 5, 9]}),
    "documents, window": ((1, 4, 2, 9, 9, 3, 2), {"bounds": [0, 4, 5, 9], "window": 2}),
    "documents, all keys": ((1, 2, 1, 9, 9, 3, 3), {"bounds": [0, 7, 9], "causal": False}),
}


def arguments(options):
    """The options of `definition` as those of `relu_attention`."""
    named = dict(options)
    bounds, offset = named.pop("bounds", None), named.pop("offset", None)
    return named | {"cu_seqlens": None if bounds is None else torch.tensor(bounds), "q_offset": offset}


def as_seen(options):
    bounds = options.get("bounds")
    documents = None if bounds is None else torch.tensor(bounds, dtype=torch.int32)
    return Seen(options.get("causal", True), options.get("offset", 0), options.get("window"), documents)


@pytest.mark.parametrize(("size", "options"), OPTIONS.values(), ids=OPTIONS)
def test_the_reference_is_the_definition(size, options):
    inputs = tensors(size)
    expected = definition(*inputs, scale=0.7, **options)
    assert torch.count_nonzero(expected) > 0
    out = relu_attention_reference(*inputs, 0.7, as_seen(options))
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("size", "options"), OPTIONS.values(), ids=OPTIONS)
def test_backends_are_the_definition_with_every_option(backend, size, options):
    inputs = tensors(size, dtype=torch.float32)
    expected = definition(*(x.double() for x in inputs), scale=0.7, **options)
    out = relu_attention(*inputs, scale=0.7, backend=backend, **arguments(options))
    assert torch.dist(out.double(), expected) <= TOLERANCE[torch.float32] * expected.norm()


@given(
    sizes=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    causal=st.booleans(),
    offset=st.integers(0, 40),
    window=st.none() | st.integers(1, 40),
)
@settings(max_examples=60, deadline=None)
def test_the_visible_keys_are_counted_without_the_mask(sizes, causal, offset, window):
    seen = Seen(causal, offset, window if causal else None)
    count = visible_count(seen, *sizes, torch.device("cpu"))
    assert torch.equal(count, visible_mask(seen, *sizes, torch.device("cpu")).sum(1))


def relative_errors(inputs, backend, *, scale, options, seed=1):
    """Of the output and the three gradients, in norm, relative to the reference in float64."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    out = relu_attention(*inputs, scale=scale, backend=backend, **arguments(options))
    expected = relu_attention_reference(*exact, scale, as_seen(options))
    incoming = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    got = [out.detach(), *torch.autograd.grad(out, inputs, incoming.to(out.dtype))]
    want = [expected.detach(), *torch.autograd.grad(expected, exact, incoming.to(out.dtype).double())]
    assert all(x.dtype == inputs[0].dtype for x in got)
    return [float(torch.dist(a.double(), b) / b.norm()) for a, b in zip(got, want, strict=True)]


SIZES = [
    ((2, 2, 2, 50, 50, 16, 16), {}),
    ((1, 4, 2, 97, 97, 8, 24), {}),
    ((1, 2, 1, 200, 200, 64, 64), {}),
    ((1, 1, 1, 33, 130, 5, 3), {"offset": 97}),
    ((2, 1, 1, 70, 70, 256, 1), {}),
    ((1, 3, 3, 150, 150, 1, 16), {"window": 40}),
    ((1, 2, 2, 160, 160, 16, 16), {"bounds": [0, 1, 100, 130, 160]}),
    ((1, 2, 1, 64, 100, 12, 12), {"causal": False}),
    ((1, 1, 1, 1200, 1200, 16, 16), {}),
]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("size", "options"), SIZES, ids=[str(size) for size, _ in SIZES])
def test_output_and_gradients_against_float64(backend, size, options, dtype):
    errors = relative_errors(tensors(size, dtype=dtype), backend, scale=0.3, options=options)
    assert max(errors) <= TOLERANCE[dtype], errors


@given(
    pairs=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 2)),
    tokens=st.tuples(st.integers(1, 120), st.integers(1, 120)),
    widths=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    causal=st.booleans(),
    window=st.none() | st.integers(1, 130),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
@pytest.mark.parametrize("name", [name for name in ("cpu", "blocked") if REFUSALS[name] is None])
def test_any_shape(name, pairs, tokens, widths, causal, window, seed):
    batch, groups, repeats = pairs
    n_new, n_keys = sorted(tokens)
    options = {"offset": n_keys - n_new, "window": window} if causal else {"causal": False}
    inputs = tensors((batch, groups * repeats, groups, n_new, n_keys, *widths), seed=seed, grad=True)
    out = relu_attention(*inputs, backend=name, **arguments(options))
    expected = relu_attention_reference(*inputs, 1.0, as_seen(options))
    got, want = (torch.autograd.grad(y.square().sum(), inputs) for y in (out, expected))
    for a, b in zip((out, *got), (expected, *want), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("normalizer", ["visible", "none", 3.0, torch.arange(1.0, 10.0)], ids=str)
def test_normalizers(backend, normalizer):
    inputs = tensors((1, 2, 1, 9, 9, 4, 4), dtype=torch.float32)
    divisor = {"visible": torch.arange(1.0, 10.0), "none": torch.ones(9)}.get(str(normalizer), normalizer)
    expected = relu_attention_reference(*(x.double() for x in inputs), 0.5, normalizer=torch.ones(9).double() * divisor)
    out = relu_attention(*inputs, scale=0.5, normalizer=normalizer, backend=backend)
    assert torch.dist(out.double(), expected) <= 1e-6 * expected.norm()


def test_first_and_second_derivatives(backend):
    inputs = tensors((1, 2, 1, 4, 6, 3, 2), seed=3, grad=True)
    scores = inputs[0].detach() @ inputs[1].detach().transpose(2, 3)
    assert scores.abs().min() > 1e-2  # away from the kink

    def function(q, k, v):
        return relu_attention(q, k, v, scale=0.5, window=4, backend=backend)

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("n_tokens", [2, 70, 200])
def test_causality_is_bit_exact(backend, n_tokens):
    inputs = tensors((2, 2, 1, n_tokens, n_tokens, 8, 8), dtype=torch.float32)
    before = relu_attention(*inputs, backend=backend)
    for j in {1, n_tokens // 2, n_tokens - 1}:
        changed = [x.clone() for x in inputs]
        for x in changed:
            x[:, :, j:] = 1e3 * x[:, :, j:] - 1
        after = relu_attention(*changed, backend=backend)
        assert torch.equal(before[:, :, :j], after[:, :, :j])
        assert not torch.equal(before[:, :, j:], after[:, :, j:])


@pytest.mark.parametrize("exponent", [-9, 1, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scaling_queries_by_a_power_of_two_scales_the_output_bit_for_bit(backend, exponent, dtype):
    q, k, v = tensors((2, 2, 2, 75, 75, 16, 16), dtype=dtype)
    scaled = relu_attention(q * 2.0**exponent, k, v, backend=backend)
    assert torch.equal(scaled, 2.0**exponent * relu_attention(q, k, v, backend=backend))


def test_negative_scores_give_exact_zeros_and_no_gradient(backend):
    q, k, v = tensors((2, 2, 1, 70, 70, 5, 5), dtype=torch.float32)
    inputs = [x.requires_grad_() for x in (q.abs(), -k.abs(), v)]
    out = relu_attention(*inputs, backend=backend)
    assert torch.count_nonzero(out) == 0
    assert all(torch.count_nonzero(g) == 0 for g in torch.autograd.grad(out.sum(), inputs))


def integers(size, seed=0):
    """Small whole numbers: every order of summation gives the same bits."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(-4, 5, x.shape, generator=generator).float() for x in tensors(size)]


def test_zero_keys_and_values_change_nothing_before_normalisation(backend):
    q, k, v = integers((2, 4, 2, 40, 100, 6, 7))
    longer = [torch.cat([x, torch.zeros(2, 2, 31, x.shape[3])], 2) for x in (k, v)]
    once, more = (
        relu_attention(q, *keys, causal=False, normalizer="none", backend=backend) for keys in ((k, v), longer)
    )
    assert torch.equal(once, more)


def test_sums_over_ranges_of_keys_add_up(backend):
    q, k, v = integers((2, 2, 1, 40, 100, 6, 6))
    parts = [
        relu_attention(q, k[:, :, keys], v[:, :, keys], causal=False, normalizer="none", backend=backend)
        for keys in (slice(0, 33), slice(33, 100))
    ]
    assert torch.equal(parts[0] + parts[1], relu_attention(q, k, v, causal=False, normalizer="none", backend=backend))


@pytest.mark.parametrize("n_new", [1, 3])
def test_the_last_rows_are_those_of_the_whole(backend, n_new):
    q, k, v = tensors((2, 4, 2, 80, 80, 8, 8), dtype=torch.float32)
    whole = relu_attention(q, k, v, backend=backend)
    for t in (n_new, 17, 80):
        rows = slice(t - n_new, t)
        part = relu_attention(q[:, :, rows], k[:, :, :t], v[:, :, :t], backend=backend)
        assert torch.dist(part, whole[:, :, rows]) <= 1e-6 * whole[:, :, rows].norm()


def test_unseen_scores_are_replaced_and_seen_ones_propagate(backend):
    q, k, v = tensors((1, 2, 2, 80, 80, 8, 8), dtype=torch.float32)
    before = relu_attention(q, k, v, backend=backend)
    k[:, :, 70] = 3e38
    k[:, :, 71:] = torch.nan
    after = relu_attention(q, k, v, backend=backend)
    assert torch.equal(before[:, :, :70], after[:, :, :70])
    assert after[:, :, 71:].isnan().all()
    q[:, :, 3] = torch.nan
    rows = relu_attention(q, k, v, backend=backend).isnan().any(3)[0, 0]
    assert rows[3]
    assert not rows[:3].any()
    assert not rows[4:70].any()


@pytest.fixture
def poisoned():
    """Every tensor that nobody filled holds NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    "options", [{}, {"window": 3, "offset": 90}, {"bounds": [0, 30, 100]}, {"window": 40}], ids=str
)
def test_results_are_written_in_full(backend, options):
    """With window 3 and offset 90 most rows see no key, and most keys are seen by no row."""
    inputs = tensors((1, 2, 1, 100, 100, 6, 5), dtype=torch.float32, grad=True)
    out = relu_attention(*inputs, backend=backend, **arguments(options))
    results = (out, *torch.autograd.grad(out.sum(), inputs))
    assert not any(x.isnan().any() for x in results)
    if options.get("offset"):
        assert torch.count_nonzero(out[:, :, 12:]) == 0


def test_equal_inputs_give_equal_bits(backend):
    def results():
        inputs = tensors((3, 4, 2, 130, 130, 16, 16), dtype=torch.float32, grad=True)
        out = relu_attention(*inputs, backend=backend)
        return [out, *torch.autograd.grad(out.square().sum(), inputs)]

    assert all(torch.equal(a, b) for a, b in zip(results(), results(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strides_do_not_matter(backend, dtype):
    """Views of a packed projection, and tokens last as a cache may hold them, against contiguous tensors."""
    batch, heads, n_tokens, width = 2, 3, 77, 8
    qkv = torch.randn(batch, n_tokens, 3, heads, width, dtype=dtype, generator=torch.Generator().manual_seed(0))
    views = [x.detach().requires_grad_() for x in qkv.permute(2, 0, 3, 1, 4).unbind(0)]
    plain = [x.detach().contiguous().requires_grad_() for x in views]
    turned = [x.detach().mT.contiguous().mT.requires_grad_() for x in views]
    assert turned[0].stride(3) == n_tokens
    packed = qkv.clone().requires_grad_()
    results = []
    for inputs in (plain, views, turned, [packed]):
        call = relu_attention_qkvpacked if inputs[0] is packed else relu_attention
        out = call(*inputs, backend=backend)
        assert out.transpose(1, 2).is_contiguous()
        gradients = torch.autograd.grad(out.square().sum(), inputs)
        results.append([out.detach(), *(gradients[0].permute(2, 0, 3, 1, 4) if inputs[0] is packed else gradients)])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.dist(a, b) <= TOLERANCE[dtype] * a.norm()
