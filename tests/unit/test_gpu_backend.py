"""The GPU backend around its kernels: refusals with their reasons, layouts of results, alignment of views."""

import importlib.util

import pytest
import torch

from icrl.attention import gpu
from icrl.attention.gpu.launch import alignment, rounded, shrink
from icrl.attention.gpu.layout import gradients, is_packed, rows_first
from icrl.attention.gpu.tables import ELSEWHERE, HALF, JOINT_TOKENS, SINGLE, WIDTHS, padded, tile
from icrl.attention.problem import Seen


def packed(width=8, tokens=50, dtype=torch.bfloat16):
    return torch.zeros(2, tokens, 3, 4, width, dtype=dtype).permute(2, 0, 3, 1, 4).unbind(0)


def test_a_cpu_tensor_is_refused_by_name():
    assert gpu.refusal(*packed(), Seen()) in {
        "the tensors are on cpu, expected a CUDA device",
        "Triton is not installed",
    }


def test_without_triton_the_package_imports_and_says_why_it_refuses(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "triton" else find(name))
    gpu._why_no_triton.cache_clear()
    try:
        assert gpu.refusal(*packed(), Seen()) == "Triton is not installed"
    finally:
        gpu._why_no_triton.cache_clear()


@pytest.mark.parametrize(
    ("changed", "seen", "reason"),
    [
        ({"dtype": torch.float64}, Seen(), "q, k, v are torch.float64"),
        ({"width": 257}, Seen(), "heads are 257 wide"),
        ({}, Seen(offset=-1), "position -1, expected at least 0"),
        ({}, Seen(), None),
    ],
)
def test_what_the_kernels_cannot_compute(changed, seen, reason, monkeypatch):
    pytest.importorskip("triton", reason="needs triton (requirements-dev)")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    said = gpu.refusal(*packed(**changed), seen)
    assert said is None if reason is None else reason in said


def test_rows_too_far_apart_for_offsets_of_32_bits(monkeypatch):
    pytest.importorskip("triton", reason="needs triton (requirements-dev)")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    near = torch.empty(1, 1, 64, 16, dtype=torch.bfloat16, device="meta")
    for rows, columns in ((2**22, 1), (16, 2**22)):
        far = torch.empty_strided((1, 1, 64, 16), (0, 0, rows, columns), dtype=torch.bfloat16, device="meta")
        for tensors in ((far, near, near), (near, far, near), (near, near, far)):
            assert "elements apart, expected less than 4194304" in gpu.refusal(*tensors, Seen())
    batches = torch.empty_strided((2, 1, 64, 16), (2**40, 2**30, 16, 1), dtype=torch.bfloat16, device="meta")
    assert gpu.refusal(batches, batches, batches, Seen()) is None
    tiles = [x for pair in (*HALF.values(), *ELSEWHERE.values()) for x in pair] + [*SINGLE.values()]
    assert max(max(x.rows, x.keys) for x in tiles) <= 256


@pytest.mark.parametrize(
    ("capability", "width", "reason"),
    [
        ((7, 5), 8, "compute capability 7.5, expected at least 8.0"),
        ((8, 9), 128, "128 wide, expected at most 64 on compute capability 8.9"),
        ((8, 9), 64, None),
        ((9, 0), 256, None),
    ],
)
def test_devices(capability, width, reason):
    said = gpu.device_refusal(capability, width)
    assert said is None if reason is None else reason in said


def test_gradients_of_a_packed_tensor_are_packed():
    q, k, v = packed()
    assert is_packed(q, k, v)
    assert is_packed(*gradients(q, k, v))
    assert not is_packed(q, v, k)
    assert not is_packed(q.contiguous(), k, v)
    assert not is_packed(q[:, :, :20], k[:, :, :20], v[:, :, :20])
    separate = gradients(q.clone(), k, v[..., :5])
    assert [x.shape for x in separate] == [q.shape, k.shape, v[..., :5].shape]
    assert all(x.transpose(1, 2).is_contiguous() for x in separate)
    out = rows_first(q, 5)
    assert out.transpose(1, 2).reshape(2, 50, 20).data_ptr() == out.data_ptr()


def test_alignment_is_what_every_stride_shares():
    assert alignment(*packed(8)) == 8
    assert alignment(*packed(16)) == 16
    assert alignment(*packed(3)) == 1
    assert alignment(torch.zeros(1, 1, 7, 16)) == 16, "strides of axes of one element say nothing"
    assert rounded(65, 64) == 2


def test_shrink_is_a_power_of_two_near_the_root_of_the_width():
    assert shrink(torch.zeros(1, 1, 1, 64, dtype=torch.float16)) == 1 / 8
    assert shrink(torch.zeros(1, 1, 1, 100, dtype=torch.float16)) == 1 / 16
    assert shrink(torch.zeros(1, 1, 1, 64, dtype=torch.bfloat16)) == 1


def test_the_table_has_every_width():
    assert [padded(x) for x in (1, 16, 17, 128, 256)] == [16, 16, 32, 128, 256]
    for kernel in ("forward", "dq", "dkdv"):
        for width in WIDTHS:
            assert tile(kernel, width, JOINT_TOKENS, torch.float16) == HALF[kernel, width][0]
            assert tile(kernel, width, JOINT_TOKENS + 1, torch.bfloat16) == HALF[kernel, width][1]
            assert tile(kernel, width, 1, torch.float32) == SINGLE[kernel, width]
