"""The bytes of the data: pinned, and the same on every instruction set."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from icrl.config import (
    ContextComponent,
    EmpiricalMeanConfig,
    LinearBanditConfig,
    LinUCBConfig,
    ThompsonConfig,
    UniformConfig,
)
from icrl.rollout import generate
from icrl.streams import Split
from icrl.versions import KERNEL_VERSION, RNG_VERSION

ENVIRONMENT = LinearBanditConfig(dim=5, n_actions=10, horizon=50)
CONFIGS = (
    UniformConfig(),
    EmpiricalMeanConfig(),
    LinUCBConfig(),
    LinUCBConfig(temperature=0.3),
    ThompsonConfig(),
)
PINNED = "ad372f2e43eca1ca47352ce6a0ac765b37e0dac76d35c250b05a13cd1425500b"


def digest():
    """SHA-256 over the trajectories of every algorithm."""
    total = hashlib.sha256()
    for config in CONFIGS:
        batch = generate(ENVIRONMENT, (ContextComponent(config),), 20, Split.TRAIN, np.arange(300))
        total.update(batch.action.tobytes() + batch.reward.tobytes() + batch.optimal_action.tobytes())
    return total.hexdigest()


def test_bytes_are_those_of_this_version():
    """Where this fails on purpose, a version in icrl.versions must change with it: stored datasets name them."""
    assert (RNG_VERSION, KERNEL_VERSION) == ("philox4x32-10/box-muller-1", "linear-bandit-1")
    assert digest() == PINNED


def test_bytes_do_not_depend_on_the_instruction_set(tmp_path):
    root = Path(__file__).parents[2]
    plain = {
        "NUMBA_CPU_NAME": "generic",
        "NUMBA_CPU_FEATURES": "",
        "NUMBA_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": str(root),
    }
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_bytes; print(test_bytes.digest())"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | plain, capture_output=True, text=True, check=True, cwd=root
    )
    assert run.stdout.split()[-1] == PINNED
