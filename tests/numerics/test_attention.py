"""Attention against its definition written as loops, its gradients, and its exact properties."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from icrl.attention import attention
from icrl.attention.reference import relu_attention_reference, softmax_attention_reference

REFERENCE = {"relu": relu_attention_reference, "softmax": softmax_attention_reference}
RAGGED = [(1, 1), (2, 2), (50, 50), (64, 64), (97, 97), (200, 200), (130, 7), (33, 1)]


def tensors(n_keys, n_new, width=5, *, pairs=(3, 2), dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sizes = (n_new, n_keys, n_keys)
    return [torch.randn(*pairs, n, width, dtype=dtype, generator=generator) for n in sizes]


def test_reference_is_definition_1():
    q, k, v = tensors(6, 6)
    expected = torch.zeros_like(q)
    for b in range(3):
        for h in range(2):
            for i in range(1, 7):
                for j in range(1, i + 1):
                    score = max(0.0, 0.7 * float(q[b, h, i - 1] @ k[b, h, j - 1]))
                    expected[b, h, i - 1] += score * v[b, h, j - 1] / i
    torch.testing.assert_close(relu_attention_reference(q, k, v, 0.7), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("kind", ["relu", "softmax"])
@pytest.mark.parametrize(("n_keys", "n_new"), RAGGED)
def test_equals_the_reference_forward_and_backward(kind, n_keys, n_new):
    inputs = [x.requires_grad_() for x in tensors(n_keys, n_new)]
    out, expected = attention(*inputs, kind, 0.3), REFERENCE[kind](*inputs, 0.3)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    incoming = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(1))
    got, want = (torch.autograd.grad(y, inputs, incoming) for y in (out, expected))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_many_pairs_are_cut_into_blocks_without_a_seam():
    inputs = tensors(120, 120, 4, pairs=(50, 3), dtype=torch.float32)
    expected = relu_attention_reference(*(x.double() for x in inputs))
    torch.testing.assert_close(attention(*inputs, "relu").double(), expected, rtol=0, atol=2e-6)


def test_gradcheck():
    inputs = [x.requires_grad_() for x in tensors(7, 4, 3, pairs=(2, 1))]
    assert torch.autograd.gradcheck(lambda q, k, v: attention(q, k, v, "relu", 0.5), inputs)


@pytest.mark.parametrize("kind", ["relu", "softmax"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("n_tokens", "pairs", "width"), [(2, (1, 1), 1), (50, (4, 2), 8), (97, (2, 3), 5), (200, (1, 2), 16)]
)
def test_causality_is_bit_exact(kind, dtype, n_tokens, pairs, width):
    q, k, v = tensors(n_tokens, n_tokens, width, pairs=pairs, dtype=dtype)
    before = attention(q, k, v, kind)
    for j in {1, n_tokens // 2, n_tokens - 1}:
        changed = [x.clone() for x in (q, k, v)]
        for x in changed:
            x[:, :, j:] = 1e3 * x[:, :, j:] - 1
        after = attention(*changed, kind)
        assert torch.equal(before[:, :, :j], after[:, :, :j])
        assert not torch.equal(before[:, :, j:], after[:, :, j:])


def test_an_overflowing_later_score_leaves_earlier_rows_alone():
    q, k, v = tensors(8, 8, dtype=torch.float32)
    before = attention(q, k, v, "relu")
    k[:, :, 5] = 3e38
    k[:, :, 6:] = torch.nan
    assert torch.equal(before[:, :, :5], attention(q, k, v, "relu")[:, :, :5])


@given(exponent=st.integers(-8, 8), n_tokens=st.integers(1, 70), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_scaling_queries_by_a_power_of_two_scales_the_output_bit_for_bit(exponent, n_tokens, seed):
    q, k, v = tensors(n_tokens, n_tokens, pairs=(1, 2), dtype=torch.float32, seed=seed)
    factor = 2.0**exponent
    assert torch.equal(attention(q * factor, k, v, "relu"), factor * attention(q, k, v, "relu"))


def test_negative_scores_give_exact_zeros_and_no_gradient():
    q, k, v = tensors(9, 9)
    inputs = [x.requires_grad_() for x in (q.abs(), -k.abs(), v)]
    out = attention(*inputs, "relu")
    assert torch.count_nonzero(out) == 0
    assert all(torch.count_nonzero(g) == 0 for g in torch.autograd.grad(out.sum(), inputs))
