"""One function for ReLU attention: what it refuses, who computes it, and where it can be used."""

import itertools
import logging
import sys
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils.checkpoint import checkpoint

from icrl.attention import dispatch, explain, relu_attention, relu_attention_qkvpacked
from icrl.attention.layout import are_packed
from icrl.attention.reference import relu_attention_reference


def tensors(n_new=6, n_keys=6, *, heads=2, groups=2, dtype=torch.float32, batch=1, grad=False):
    generator = torch.Generator().manual_seed(0)
    shapes = ((batch, heads, n_new, 4), (batch, groups, n_keys, 4), (batch, groups, n_keys, 4))
    return [torch.randn(s, generator=generator).to(dtype).requires_grad_(grad) for s in shapes]


Q, K, V = tensors()
BOUNDS = torch.tensor([0, 2, 6])
REFUSED = {
    "three sizes": ((Q[0], K, V), {}, r"q: got \(2, 6, 4\), expected a tensor of four sizes"),
    "no tensor": (([1.0], K, V), {}, "q: got list"),
    "no rows": ((Q[:, :, :0], K, V), {}, r"q: got \(1, 2, 0, 4\), .* at least 1"),
    "integers": ((Q.int(), K, V), {}, r"q: got torch.int32, expected float32, bfloat16"),
    "mixed dtypes": ((Q, K.half(), V), {}, "k: got torch.float16, expected the dtype of q, torch.float32"),
    "mixed devices": ((Q, K, V.to("meta")), {}, "v: got meta, expected the device of q, cpu"),
    "wide": ((torch.zeros(1, 1, 1, 257),) * 3, {}, "q: got width 257, expected at most 256"),
    "wide value": ((Q, K, torch.zeros(1, 2, 6, 300)), {}, "v: got width 300, expected at most 256"),
    "batch": ((Q, K.expand(3, -1, -1, -1), V), {}, r"k: got \(3, 2, 6, 4\), expected \[1, key heads, keys, 4\]"),
    "width": ((Q, K[..., :3], V), {}, r"k: got \(1, 2, 6, 3\)"),
    "groups": ((Q, *(x.repeat(1, 2, 1, 1)[:, :3] for x in (K, V))), {}, "k: got 3 heads, expected a divisor of the 2"),
    "values": ((Q, K, V[:, :, :5]), {}, r"v: got \(1, 2, 5, 4\), expected \[1, 2, 6, width of a value\]"),
    "more rows than keys": ((Q, K[:, :, :4], V[:, :, :4]), {}, "q: got 6 rows for 4 keys, .* q_offset"),
    "scale": ((Q, K, V), {"scale": -1.0}, r"scale: got -1.0, expected a positive number \(negate q"),
    "scale zero": ((Q, K, V), {"scale": 0.0}, "scale: got 0.0"),
    "scale NaN": ((Q, K, V), {"scale": float("nan")}, "scale: got nan"),
    "normalizer word": ((Q, K, V), {"normalizer": "mean"}, "normalizer: got 'mean', expected visible, none"),
    "normalizer number": ((Q, K, V), {"normalizer": 0.0}, "normalizer: got 0.0"),
    "normalizer none": ((Q, K, V), {"normalizer": None}, "normalizer: got None"),
    "normalizer shape": (
        (Q, K, V),
        {"normalizer": torch.ones(5)},
        r"normalizer: got \(5,\) on cpu, expected \[6\] on cpu",
    ),
    "normalizer value": (
        (Q, K, V),
        {"normalizer": torch.zeros(6)},
        "normalizer: got a value that is not, expected positive",
    ),
    "normalizer gradient": ((Q, K, V), {"normalizer": torch.ones(6, requires_grad=True)}, "multiply the output"),
    "window": ((Q, K, V), {"window": 0}, "window: got 0 with causal=True, expected at least 1"),
    "window negative": ((Q, K, V), {"window": -3}, "window: got -3"),
    "window, all keys": ((Q, K, V), {"window": 2, "causal": False}, "window: got 2 with causal=False"),
    "window tensor": (
        (Q, K, V),
        {"window": torch.tensor(3)},
        r"window: got tensor\(3\), expected None or an int .*item",
    ),
    "window fraction": ((Q, K, V), {"window": 2.5}, "window: got 2.5, expected None or an int"),
    "window bool": ((Q, K, V), {"window": True}, "window: got True, expected None or an int"),
    "offset fraction": ((Q, K, V), {"q_offset": 1.5}, "q_offset: got 1.5, expected None or an int"),
    "offset far": (
        (Q, K, V),
        {"q_offset": 2**31},
        "q_offset: got 2147483648, expected .* at most 1073741818 for 6 rows",
    ),
    "longest fraction": ((Q, K, V), {"cu_seqlens": BOUNDS, "max_seqlen": 4.5}, "max_seqlen: got 4.5, expected None or"),
    "causal": ((Q, K, V), {"causal": "no"}, "causal: got 'no', expected True or False"),
    "scale tensor": (
        (Q, K, V),
        {"scale": torch.nn.Parameter(torch.tensor(2.0))},
        "scale: got Parameter, expected an int or a float .* multiply q by it",
    ),
    "scale word": ((Q, K, V), {"scale": "1"}, "scale: got str, expected an int or a float"),
    "scale tiny": ((Q, K, V), {"scale": 1e-50}, "scale: got 1e-50, expected a number that float32 holds"),
    "normalizer tiny": ((Q, K, V), {"normalizer": 1e-50}, r"normalizer: got 1e-50, expected .* float32 holds 1.0 / it"),
    "normalizer tiny value": (
        (Q, K, V),
        {"normalizer": torch.full((6,), 1e-60, dtype=torch.float64)},
        "normalizer: got a value that is not, expected positive",
    ),
    "offset": ((Q, K, V), {"q_offset": -1}, "q_offset: got -1 .* expected at least 0"),
    "offset, all keys": ((Q, K, V), {"q_offset": 1, "causal": False}, "q_offset: got 1 with causal=False"),
    "offset, documents": ((Q, K, V), {"q_offset": 1, "cu_seqlens": BOUNDS}, "q_offset: .* without cu_seqlens"),
    "documents list": ((Q, K, V), {"cu_seqlens": [0, 6]}, "cu_seqlens: got list, expected a tensor of int32 or int64"),
    "documents float": ((Q, K, V), {"cu_seqlens": BOUNDS.float()}, "cu_seqlens: got torch.float32"),
    "documents shape": (
        (Q, K, V),
        {"cu_seqlens": BOUNDS[None]},
        r"cu_seqlens: got \(1, 3\), expected \[documents \+ 1",
    ),
    "documents device": ((Q, K, V), {"cu_seqlens": BOUNDS.to("meta")}, "cu_seqlens: got meta"),
    "documents start": ((Q, K, V), {"cu_seqlens": BOUNDS + torch.tensor([1, 0, 0])}, r"cu_seqlens: got \[1, 2, 6\]"),
    "documents end": ((Q, K, V), {"cu_seqlens": BOUNDS[:2]}, r"got \[0, 2\], expected 0 first, 6 last, ascending"),
    "documents empty": ((Q, K, V), {"cu_seqlens": torch.tensor([0, 2, 2, 6])}, "ascending"),
    "documents descend": ((Q, K, V), {"cu_seqlens": torch.tensor([0, 4, 2, 6])}, "ascending"),
    "documents batch": (tensors(batch=2), {"cu_seqlens": BOUNDS}, "q: got batch 2, .* with cu_seqlens batch 1"),
    "documents rows": (tensors(5, 6), {"cu_seqlens": BOUNDS}, "q: got batch 1, 5 rows for 6 keys"),
    "longest short": ((Q, K, V), {"cu_seqlens": BOUNDS, "max_seqlen": 3}, "max_seqlen: got 3, expected at least 4"),
    "longest long": ((Q, K, V), {"cu_seqlens": BOUNDS, "max_seqlen": 7}, "max_seqlen: got 7, expected 1 to 6"),
    "longest alone": ((Q, K, V), {"max_seqlen": 7}, "max_seqlen: got 7, expected None without cu_seqlens"),
    "backend": ((Q, K, V), {"backend": "cuda"}, "backend: got 'cuda', expected auto, cpu, gpu, blocked, reference"),
    "deterministic": ((Q, K, V), {"deterministic": 1}, "deterministic: got 1, expected True or False"),
}


@pytest.mark.parametrize(("inputs", "options", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_arguments_are_named(inputs, options, message):
    with pytest.raises(ValueError, match=message):
        relu_attention(*inputs, **options)


def test_a_packed_tensor_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"qkv: got \(1, 6, 2, 2, 4\), expected a tensor \[batch, tokens, 3"):
        relu_attention_qkvpacked(torch.zeros(1, 6, 2, 2, 4))


def backend_module(refusal):
    return SimpleNamespace(refusal=lambda *_: refusal, forward=lambda q, *_: q + 1, backward=None)


@pytest.fixture
def modules(monkeypatch):
    """Backends by name, in place of those on this machine."""
    held = {name: backend_module(None) for name in dispatch.BACKENDS}
    monkeypatch.setattr(dispatch, "_load", held.__getitem__)
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)
    dispatch._log_once.cache_clear()
    return held


def test_the_first_backend_that_does_not_refuse_computes_and_the_refusals_are_logged_once(modules, caplog):
    assert explain(Q, K, V) == "cpu"
    modules["cpu"] = backend_module("needs a compiler")
    with caplog.at_level(logging.INFO, logger="icrl.attention"):
        for _ in range(3):
            assert torch.equal(relu_attention(Q, K, V), Q + 1)
    assert [r.getMessage() for r in caplog.records] == ["ReLU attention runs on backend blocked: cpu needs a compiler"]
    assert explain(Q, K, V) == "blocked; cpu needs a compiler"
    modules["blocked"] = "cannot be imported: nothing there"
    assert explain(Q, K, V) == "reference; cpu needs a compiler; blocked cannot be imported: nothing there"


def test_the_variable_stands_in_for_auto_alone(modules, monkeypatch):
    monkeypatch.setenv(dispatch.VARIABLE, "blocked")
    assert explain(Q, K, V) == "blocked"
    assert explain(Q, K, V, backend="reference") == "reference"
    monkeypatch.setenv(dispatch.VARIABLE, "fast")
    with pytest.raises(ValueError, match="ICRL_ATTENTION_BACKEND: got 'fast', expected auto, cpu"):
        relu_attention(Q, K, V)
    monkeypatch.setenv(dispatch.VARIABLE, "")
    assert explain(Q, K, V) == "cpu"


def test_a_backend_asked_for_that_refuses_says_why(modules, monkeypatch):
    modules["gpu"] = backend_module("takes CUDA tensors, got cpu")
    with pytest.raises(ValueError, match="backend: got 'gpu', which takes CUDA tensors, got cpu; expected another"):
        relu_attention(Q, K, V, backend="gpu")
    monkeypatch.setenv(dispatch.VARIABLE, "gpu")
    with pytest.raises(ValueError, match="ICRL_ATTENTION_BACKEND: got 'gpu', which takes CUDA tensors"):
        relu_attention(Q, K, V)


def test_a_missing_module_is_a_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "icrl.attention.gpu", None)
    dispatch._load.cache_clear()
    with pytest.raises(ValueError, match=r"'gpu', which cannot be imported: .*icrl\.attention\.gpu"):
        explain(Q, K, V, backend="gpu")
    dispatch._load.cache_clear()


OPERATORS = torch.ops.icrl
DOCUMENTS = torch.tensor([0, 2, 6], dtype=torch.int32)
SAMPLES = {
    "window": (True, 0, 3, None, None),
    "documents": (True, 0, None, DOCUMENTS, 4),
}
FACTOR = 1 / torch.arange(1.0, 7.0)


@pytest.mark.parametrize("seen", SAMPLES.values(), ids=SAMPLES)
def test_opcheck(seen):
    inputs = tensors(heads=4, grad=True, dtype=torch.float64)
    torch.library.opcheck(OPERATORS.relu_attention.default, (*inputs, FACTOR.double(), *seen, "auto"))
    qkv = torch.randn(2 if seen[3] is None else 1, 6, 3, 2, 4, requires_grad=True)
    torch.library.opcheck(OPERATORS.relu_attention_packed.default, (qkv, FACTOR, *seen, "auto"))


@pytest.mark.parametrize("seen", SAMPLES.values(), ids=SAMPLES)
def test_opcheck_of_the_backward_operators(seen):
    inputs, grad = tensors(), torch.randn(1, 6, 2, 4).transpose(1, 2)
    torch.library.opcheck(OPERATORS.relu_attention_backward.default, (grad, *inputs, FACTOR, *seen, "auto"))
    qkv = torch.randn(1, 6, 3, 2, 4)
    torch.library.opcheck(OPERATORS.relu_attention_packed_backward.default, (grad, qkv, FACTOR, *seen, "auto"))


def packed_model(qkv, weight):
    """An attention layer between two elementwise parts."""
    mixed = relu_attention_qkvpacked(qkv * weight, scale=0.5)
    return mixed.transpose(1, 2).flatten(2).sin()


def split_model(qkv, weight):
    q, k, v = (qkv * weight).permute(2, 0, 3, 1, 4).unbind(0)
    bounds = torch.arange(0, qkv.shape[1] + 1, qkv.shape[1] // 2)
    documents = relu_attention(q, k, v, cu_seqlens=bounds)
    return (documents + relu_attention(q[:, :, 2:], k, v, window=3).sum()).transpose(1, 2).flatten(2).sin()


@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("model", [packed_model, split_model])
def test_compiles_as_one_graph_for_every_length(model, compiler):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(model, backend=compiler, fullgraph=True, dynamic=True)
    for n_tokens in (8, 12, 30):
        inputs = [torch.randn(n, dtype=torch.float64, requires_grad=True) for n in ((1, n_tokens, 3, 2, 4), (4,))]
        out, expected = compiled(*inputs), model(*inputs)
        torch.testing.assert_close(out, expected)
        got, want = (torch.autograd.grad(y.square().sum(), inputs) for y in (out, expected))
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(reentrant):
    inputs = tensors(grad=True)
    out = checkpoint(relu_attention, *inputs, use_reentrant=reentrant)
    out.square().sum().backward()
    got = [x.grad for x in inputs]
    want = torch.autograd.grad(relu_attention(*inputs).square().sum(), inputs)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_the_gradient_of_a_packed_tensor_is_the_buffer_that_the_backend_wrote(monkeypatch):
    written = []
    backward = dispatch.run_backward

    def watched(*arguments):
        written.extend(backward(*arguments))
        return written

    monkeypatch.setattr("icrl.attention.relu.run_backward", watched)
    qkv = torch.randn(2, 7, 3, 2, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(relu_attention_qkvpacked(qkv).sum(), qkv)
    assert gradient.is_contiguous()
    assert are_packed(*written)
    assert gradient.data_ptr() == written[0].data_ptr()


def test_the_gradient_of_a_packed_tensor_can_be_differentiated():
    qkv = torch.randn(1, 4, 3, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    assert torch.autograd.gradgradcheck(relu_attention_qkvpacked, qkv)


def test_operators_can_be_differentiated_twice_too():
    inputs = tensors(dtype=torch.float64, grad=True)
    function = lambda *x: OPERATORS.relu_attention.default(*x, FACTOR.double(), *SAMPLES["window"], "auto")  # noqa: E731
    assert torch.autograd.gradgradcheck(function, inputs)


def test_function_transforms_and_modes_see_plain_operations():
    inputs = tensors(dtype=torch.float64)
    got = torch.func.grad(lambda *x: relu_attention(*x).square().sum(), argnums=(0, 1, 2))(*inputs)
    leaves = [x.requires_grad_() for x in inputs]
    want = torch.autograd.grad(relu_attention_reference(*leaves).square().sum(), leaves)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)
    with torch._subclasses.FakeTensorMode():
        fake = [torch.empty(2, 4, 9, 8) for _ in range(3)]
        assert relu_attention(*fake).shape == (2, 4, 9, 8)


def test_forward_mode_differentiation():
    inputs, directions = tensors(dtype=torch.float64), tensors(dtype=torch.float64)[::-1]
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(*pair) for pair in zip(inputs, directions, strict=True)]
        got = forward_ad.unpack_dual(relu_attention(*duals)).tangent
    assert got is not None, "the tangent was dropped"
    torch.testing.assert_close(got, torch.func.jvp(relu_attention_reference, (*inputs,), (*directions,))[1])


@pytest.mark.parametrize("window", [2**30, 2**31 - 1, sys.maxsize, 2**70])
def test_a_huge_window_is_none(window):
    inputs = tensors(9, 20, grad=True)
    for backend in ("auto", "blocked", "reference"):
        out, plain = (relu_attention(*inputs, backend=backend, **x) for x in ({"window": window}, {}))
        gradients, expected = (torch.autograd.grad(x.square().sum(), inputs) for x in (out, plain))
        assert torch.equal(out, plain)
        assert all(torch.equal(a, b) for a, b in zip(gradients, expected, strict=True))


@pytest.mark.filterwarnings("ignore")  # torch.jit.trace warns of itself and of what it takes for constant
def test_every_tensor_is_looked_at():
    """A subclass among k and v, a tensor that stands for its negative, and a recording that runs on other tensors."""
    q, k, v = tensors()
    expected = relu_attention(q, k, v)
    wrapped = relu_attention(q, TwoTensor(k, k.clone()), v)
    assert isinstance(wrapped, TwoTensor)
    assert torch.equal(wrapped.a, expected)
    negative = torch.complex(torch.zeros(q.shape), -q).conj().imag
    assert negative.is_neg()
    assert torch.equal(relu_attention(negative, k, v), expected)
    recorded = torch.jit.trace(relu_attention, tuple(torch.zeros_like(x) for x in (q, k, v)), check_trace=False)
    assert torch.equal(recorded(q, k, v), expected)


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_values_are_not_read_where_something_traces(mode):
    """cu_seqlens and a normaliser: the recording serves other values of both."""
    q, k, v = tensors()
    record = make_fx(lambda q, k, v, c, n: relu_attention(q, k, v, cu_seqlens=c, normalizer=n), tracing_mode=mode)
    recorded = record(q, k, v, BOUNDS, torch.ones(6))
    bounds, normalizer = torch.tensor([0, 1, 6]), torch.arange(1.0, 7)
    expected = relu_attention(q, k, v, cu_seqlens=bounds, normalizer=normalizer)
    torch.testing.assert_close(recorded(q, k, v, bounds, normalizer), expected)
    with torch._subclasses.FakeTensorMode():
        x = torch.empty(1, 2, 6, 8)
        for options in ({"cu_seqlens": torch.empty(3, dtype=torch.int32)}, {"normalizer": torch.empty(6)}):
            assert relu_attention(x, x, x, **options).shape == x.shape


def test_documents_that_changed_before_the_backward_pass_are_refused():
    bounds = DOCUMENTS.clone()
    inputs = tensors(grad=True)
    packed = torch.stack([x.transpose(1, 2) for x in tensors()], 2).requires_grad_()
    outs = relu_attention(*inputs, cu_seqlens=bounds), relu_attention_qkvpacked(packed, cu_seqlens=bounds)
    bounds[1] = 4
    for out in outs:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.sum().backward()


def test_autocast_leaves_the_dtype_alone():
    inputs, weight = tensors(80, 80, grad=True), torch.randn(1, 2, 80, 4, generator=torch.Generator().manual_seed(3))
    exact = relu_attention_reference(*(x.double() for x in inputs))
    expected = [exact.detach(), *torch.autograd.grad((exact * weight).sum(), inputs)]
    for backend, graph in itertools.product(("blocked", "auto"), (False, True)):
        with torch.autocast("cpu", torch.bfloat16):
            out = relu_attention(*inputs, backend=backend)
            gradients = torch.autograd.grad((out * weight).sum(), inputs, create_graph=graph)
        for a, b in zip((out, *gradients), expected, strict=True):
            assert a.dtype == torch.float32
            assert torch.dist(a.detach().double(), b) <= 1e-6 * b.norm()


def test_what_inference_keeps_serves_training():
    """The factors of a shape are kept from call to call, also when the first call was in inference mode."""
    inputs = tensors(11, 11, grad=True)
    with torch.inference_mode():
        first = relu_attention(*inputs)
    out = relu_attention(*inputs)
    torch.autograd.grad(out.sum(), inputs)
    assert torch.equal(first, out)


def test_meta_tensors_cost_nothing():
    q = torch.empty(2, 4, 5000, 8, device="meta")
    assert relu_attention(q, q, q).shape == q.shape
