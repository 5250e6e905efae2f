"""The Triton kernels' numbers without a GPU: the interpreter against float64, and identities that hold bit for bit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="needs triton (requirements-dev)")


def interpreted(*groups: str) -> dict[str, list[float]]:
    """{check: [error, allowed]} of `python -m tests.interpreted`, see there why it is another process."""
    ran = subprocess.run(
        [sys.executable, "-m", "tests.interpreted", *groups],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    results: dict[str, list[float]] = json.loads(ran.stdout)
    return results


@pytest.mark.parametrize(
    ("group", "checks"),
    [
        ("matrix", 52),
        ("decode", 16),
        ("cache", 4),
        ("far", 3),
        ("identities", 19),
        # the checks that the GPU benchmark runs on a device, so that they are known to work
        pytest.param("device", 12 + 10 + 12, marks=pytest.mark.slow),
        pytest.param("whole", 4 * 78, marks=pytest.mark.slow),
    ],
)
def test_kernels_in_the_interpreter(group, checks):
    results = interpreted(group)
    assert len(results) == checks
    # a NaN is no number at most anything
    missed = {name: x for name, x in results.items() if not x[0] <= x[1]}
    assert not missed
