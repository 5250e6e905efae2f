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
VARIANTS = (
    LinearBanditConfig(horizon=30, prior="gaussian", noise="bounded"),
    LinearBanditConfig(horizon=30, prior="sphere", noise="bernoulli"),
    LinearBanditConfig(horizon=30, prior="unit_box", noise="gaussian", action_set="fresh"),
    LinearBanditConfig(horizon=30, prior="sphere", noise="bernoulli", action_set="fresh"),
)
PINNED = "ad372f2e43eca1ca47352ce6a0ac765b37e0dac76d35c250b05a13cd1425500b"
PINNED_VARIANTS = "e99f7879f55524b457a17cf772abf1c437a1d05392cf335224603362a9235230"


def digest():
    """SHA-256 over the trajectories of every algorithm."""
    total = hashlib.sha256()
    for config in CONFIGS:
        batch = generate(ENVIRONMENT, (ContextComponent(config),), 20, Split.TRAIN, np.arange(300))
        total.update(batch.action.tobytes() + batch.reward.tobytes() + batch.optimal_action.tobytes())
    return total.hexdigest()


def digest_of_variants():
    """The same for other priors, noises and fresh action sets."""
    total = hashlib.sha256()
    for environment in VARIANTS:
        for config in (UniformConfig(), LinUCBConfig(temperature=0.3), ThompsonConfig(noise_variance=1.0)):
            batch = generate(environment, (ContextComponent(config),), 20, Split.TRAIN, np.arange(300))
            total.update(batch.action.tobytes() + batch.reward.tobytes() + batch.optimal_action.tobytes())
    return total.hexdigest()


def test_bytes_are_those_of_this_version():
    """Where this fails on purpose, a version in icrl.versions must change with it: stored datasets name them."""
    assert (RNG_VERSION, KERNEL_VERSION) == ("philox4x32-10/box-muller-1", "rollouts-2")
    assert digest() == PINNED
    assert digest_of_variants() == PINNED_VARIANTS


def test_bytes_do_not_depend_on_the_instruction_set(tmp_path):
    root = Path(__file__).parents[2]
    plain = {
        "NUMBA_CPU_NAME": "generic",
        "NUMBA_CPU_FEATURES": "",
        "NUMBA_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": str(root),
    }
    here = str(Path(__file__).parent)
    code = (
        f"import sys; sys.path.insert(0, {here!r}); import test_bytes as t; print(t.digest(), t.digest_of_variants())"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | plain, capture_output=True, text=True, check=True, cwd=root
    )
    assert run.stdout.split()[-2:] == [PINNED, PINNED_VARIANTS]
