"""The Triton kernels compiled for GPUs that are not there: what must be in the machine code, and how much of it.

`gpu_budgets.csv` holds a figure for every shipped tile: instructions per score in the innermost loops (without a mask,
and with one), as Triton 3.6.0 with its own ptxas (12.8) compiles them, and the bytes of stack. Of the instructions of a
plain loop at least 0.5 per score are the conversion with relu; a backward loop adds 0.5 each for the comparison, the
selection and the second conversion; the rest is addresses, loads, matrix instructions, waiting, spread over the tile.
A mask costs a comparison and a selection, 2 per score. More than the figure is a regression of kernel or compiler.

Not to be seen here: races, wrong code from the compiler (ptxas 12.8.93 has been caught at it on sm_90), and time.
"""

import csv
import functools
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="needs triton (requirements-dev)")

from icrl.attention.gpu import ahead
from icrl.attention.gpu.decode import decode_launch
from icrl.attention.gpu.launch import backward_launches, forward_launch, target
from icrl.attention.gpu.layout import gradients, rows_first
from icrl.attention.problem import Seen

BUDGETS = list(csv.DictReader((Path(__file__).parents[1] / "gpu_budgets.csv").open()))
PROJECT = {("90", "8", "200"), ("90", "16", "400")}
"""Capability, width and tokens of what the project runs, on the GPU that matters most: not slow."""


def launches(width, tokens, capability, dtype=torch.bfloat16):
    """The launches of both passes over packed tensors, by kernel, as they are on a compute capability."""
    qkv = torch.empty(64, tokens, 3, 4, width, dtype=dtype, device="meta")
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    factor, out = torch.empty(tokens, device="meta"), rows_first(q, width)
    with target(capability):
        backward = backward_launches(*gradients(q, k, v), out, q, k, v, factor, Seen())
        return {x.kernel.__name__: x for x in [forward_launch(out, q, k, v, factor, Seen()), *backward]}


@functools.cache
def compiled(width, tokens, kernel, capability, dtype=torch.bfloat16):
    launch = launches(width, tokens, capability, dtype)[kernel]
    return launch, ahead.compile_for(launch, capability)


def per_score(launch, code):
    """Instructions per score of the loops over tiles, ascending: those that hold matrix products."""
    scores = launch.tile.rows * launch.tile.keys / (32 * launch.tile.warps)
    tiles = [loop for loop in code.loops if any(name.startswith(("HMMA", "HGMMA", "UTCHMMA")) for name in loop)]
    return sorted(round(sum(n for name, n in loop.items() if name != "NOP") / scores, 2) for loop in tiles)


def cases():
    for row in BUDGETS:
        default = (row["capability"], row["width"], row["tokens"]) in PROJECT
        yield pytest.param(row, marks=() if default else pytest.mark.slow, id="-".join(list(row.values())[:4]))


@pytest.mark.parametrize("budget", cases())
def test_machine_code_of_every_shipped_tile(budget):
    width, tokens, capability = int(budget["width"]), int(budget["tokens"]), int(budget["capability"])
    launch, code = compiled(width, tokens, budget["kernel"], capability)
    assert code.stack <= int(budget["stack"])
    if code.stack == 0:
        assert code.count("STL") == code.count("LDL") == 0
    assert code.shared <= ahead.SHARED_LIMIT[capability]
    wide = launch.tile.warps % 4 == 0 and launch.tile.rows >= 64
    matrix = {80: "HMMA", 90: "HGMMA" if wide or "dkdv" in budget["kernel"] else "HMMA", 100: "UTC" if wide else "HMMA"}
    if budget["kernel"] == "dkdv_kernel" and capability == 100:
        matrix[100] = "UTC"
    assert code.count(matrix[capability]) >= 2
    assert code.count("F2FP.RELU") >= launch.tile.rows * launch.tile.keys / (64 * launch.tile.warps)
    # no relu of its own, no scalar loads of the matrices
    assert code.count("FMNMX") == 0
    assert code.count("LDG.E.U16") == 0
    if "forward" not in budget["kernel"]:
        assert code.count("HSET2") > 0
        # none on global memory; sm_100 allocates tensor memory with ATOMS
        assert not any(code.count(name) for name in ("ATOMG", "ATOM.", "REDG", "RED."))
    masked, plain = float(budget["masked"]), float(budget["plain"])
    found = per_score(launch, code)
    assert len(found) == 2, "one loop without and one with a mask"
    assert found[0] <= plain
    assert found[1] <= masked


def test_every_tile_has_a_budget():
    listed = {(row["capability"], row["kernel"], row["width"], row["tokens"]) for row in BUDGETS}
    for capability in ("80", "90", "100"):
        for width in (8, 16, 32, 64, 128):
            for tokens in (400, 1024):
                for kernel in launches(width, tokens, int(capability)):
                    assert (capability, kernel, str(width), str(tokens)) in listed


@pytest.mark.parametrize(
    ("dtype", "width", "capability"),
    [
        pytest.param(dtype, width, capability, marks=pytest.mark.slow)
        for dtype in (torch.float16, torch.float32)
        for width in (8, 64, 128)
        for capability in (80, 90)
    ],
)
def test_other_types_compile(dtype, width, capability):
    for tokens in (400, 1024):
        for name in launches(width, tokens, capability, dtype):
            launch, code = compiled(width, tokens, name, capability, dtype)
            assert code.shared <= ahead.SHARED_LIMIT[capability]
            assert (code.count("F2FP.RELU") > 0) == (dtype == torch.float16)
            assert launch.arguments["FUSED"]


@pytest.mark.parametrize(
    ("heads", "width", "capability"),
    [(4, 8, 90), *(pytest.param(4, w, c, marks=pytest.mark.slow) for w, c in ((16, 80), (16, 90), (16, 100)))],
)
def test_decode_reads_sixteen_bytes_at_a_time(heads, width, capability):
    q = torch.empty(4096, heads, width, dtype=torch.bfloat16, device="meta")
    cache = torch.empty(4096, 401, 2, heads, width, dtype=torch.bfloat16, device="meta")
    lengths = torch.empty(4096, dtype=torch.int32, device="meta")
    code = ahead.compile_for(decode_launch(q, q, q, q, cache, lengths, 1.0, visible=True), capability)
    assert code.stack == 0
    (loop,) = [x for x in code.loops if any(name.startswith("LDG") for name in x)]
    loads = {name for name in loop if name.startswith("LDG")}
    assert loads == {"LDG.E.128"}
    cached = sum(n for name, n in loop.items() if name in loads) * 8
    assert sum(loop.values()) / cached <= DECODE_BUDGET[capability]
    assert code.count("HMMA") == code.count("HGMMA") == code.count("ATOM") == 0


DECODE_BUDGET = {80: 3.54, 90: 3.5, 100: 3.5}
"""Instructions per cached element: a conversion, a product and a sum each, and addresses. An SM that reads the cache at
full bandwidth has about four times as many to spend."""
