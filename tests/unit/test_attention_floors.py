"""The arithmetic of the GPU benchmark on made-up timings; that the command refuses without a GPU and imports little."""

import subprocess
import sys
from pathlib import Path

import pytest

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

H200 = Rates(copy=4.3e12, matmul=790e12)
"""As measured on one once."""


@pytest.mark.parametrize(
    ("shape", "forward_us", "backward_us"),
    [
        (Shape(64, 4, 200, 8), 0.762, 1.49),
        (Shape(256, 4, 400, 16), 12.2, 24),
        (Shape(32, 16, 1024, 64), 92, 231),
        (Shape(1, 16, 16384, 128), 1403, 3507),
    ],
)
def test_floors_by_hand(shape, forward_us, backward_us):
    assert 1e6 * shape.floor_s("forward", H200) == pytest.approx(forward_us, rel=0.04)
    assert 1e6 * shape.floor_s("backward", H200) == pytest.approx(backward_us, rel=0.04)


def test_useful_work_of_a_shape():
    assert SHORT.flops("forward") == 4 * 256 * 4 * 512**2 * 64 / 2
    assert SHORT.flops("backward") == 2.5 * SHORT.flops("forward")
    assert PAPER.moved("forward") == 4 * 256 * 4 * 400 * 16 * 2
    assert PAPER.moved("backward") == 7 * 256 * 4 * 400 * 16 * 2


@pytest.mark.parametrize(("scale", "met"), [(0.99, True), (1.01, False)])
def test_a_target_is_met_up_to_its_limit(scale, met):
    limits = {
        (PAPER, "forward"): 2 * PAPER.floor_s("forward", H200),
        (PAPER, "backward"): 2 * PAPER.floor_s("backward", H200),
        (SHORT, "forward"): 0.146e-3,
        (SHORT, "backward"): 0.384e-3,
        (LONG, "forward"): LONG.flops("forward") / 480e12,
    }
    timings = [Timing(shape, kind, "ours", scale * limit) for (shape, kind), limit in limits.items()]
    assert [x.met for x in targets(timings, H200)] == [met] * 5
    assert sum("MISSED" in row for row in target_rows(targets(timings, H200))) == 5 * (not met)


def test_what_was_not_timed_misses_its_target():
    rivals = [Timing(x, "forward", "eager T x T", 1e-9) for x in (PAPER, SHORT, LONG)]
    assert not any(x.met for x in targets(rivals, H200))


def test_tables():
    rows = timing_rows([Timing(SHORT, "forward", "ours", 1e-3), Timing(SHORT, "forward", "eager", None, "why")], H200)
    assert rows[2] == "| (256,4,512,64) | forward | ours | 1.0000 | 34.4 | 0.27 | 16.02 |"
    assert "not measured: why" in rows[3]
    step = DecodeTiming(4096, 4, 8, 1000, "ours", 244e-6)
    assert 1e6 * step.floor_s(H200) == pytest.approx(122, rel=0.01)
    assert decode_rows([step], H200)[2] == "| 4096 | 4 | 8 | 1000 | ours | 244.0 | 2.00 |"


def test_without_a_gpu_the_command_says_so_and_imports_little():
    code = """
import runpy, sys
sys.argv = ["benchmarks", "attention", "--gpu"]
try:
    runpy.run_module("benchmarks", run_name="__main__")
finally:
    import benchmarks.attention_gpu_check, icrl.attention.gpu.launch
    heavy = {"ray", "deepspeed", "zarr", "omegaconf", "numba", "typer", "yaml", "scipy"} & set(sys.modules)
    print("imported", sorted(heavy))
"""
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False,
        env={"PATH": "", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert ran.returncode == 2, ran.stderr
    assert ran.stdout.splitlines() == [
        "error: attention --gpu needs a CUDA device, found none; the checks without one are in docs/gpu.md",
        "imported []",
    ]
