"""Versions of everything that decides bytes. Part of every dataset's recipe; imports nothing."""

RNG_VERSION = "philox4x32-10/box-muller-1"
"""The counter-based generator and its transform to normals (`icrl.streams`)."""

KERNEL_VERSION = "rollouts-2"
"""The rollouts (`icrl.rollout`): bumped when the same (config, seed, index) gives other bytes."""

SCHEMA_VERSION = 2
"""The dataset's contract on disk (`icrl.store`)."""

RESULTS_VERSION = 1
"""The schema of `results.json`."""
