"""Whether two splits share an environment: none may, or the test would be on environments that were trained on.

Splits are told apart by their keys alone, so what goes wrong there goes wrong at every index: the first ones suffice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from itertools import combinations

import numpy as np

from icrl import envs
from icrl.config import EnvironmentConfig, GridWorldConfig
from icrl.envs.bandit import BanditBatch
from icrl.envs.base import Batch
from icrl.streams import Split

LIMIT = 2048
"""Environments of each split that are compared, the first ones."""

_BLOCK = 64
"""Environments sampled at once: MDPs are large."""


@dataclass(frozen=True)
class Leakage:
    """What a comparison of splits found."""

    compared: Mapping[str, int]
    """Split -> how many of its environments were compared."""
    shared: Mapping[tuple[str, str], int]
    """Two splits -> how many different environments are in both."""
    finite: bool
    """The prior has but few environments, so that splits share them whatever is done."""

    @property
    def found(self) -> bool:
        """Whether splits share what they need not share."""
        return not self.finite and any(self.shared.values())

    def describe(self) -> str:
        """One line for people."""
        many = " + ".join(f"{count:,} {split}" for split, count in self.compared.items())
        shared = ", ".join(f"{count:,} in {a} and {b}" for (a, b), count in self.shared.items() if count)
        if not shared:
            return f"none of {many} environments is in two splits"
        return f"of {many} environments {shared}" + (": the prior has few" if self.finite else ": a leak")


def leakage(environment: EnvironmentConfig, seed: int, sizes: Mapping[str, int], *, limit: int = LIMIT) -> Leakage:
    """Compare the first environments of the splits, at most `limit` of each, bit for bit; `sizes`: split -> n."""
    found = {
        split: _digests(environment, seed, Split[split.upper()], min(size, limit)) for split, size in sizes.items()
    }
    return Leakage(
        compared={split: min(sizes[split], limit) for split in sizes},
        shared={(a, b): len(found[a] & found[b]) for a, b in combinations(found, 2)},
        finite=isinstance(environment, GridWorldConfig),
    )


def _digests(environment: EnvironmentConfig, seed: int, split: Split, n: int) -> set[bytes]:
    """The environments 0 .. n - 1 of a split, each as a sum of all that decides it."""
    digests: set[bytes] = set()
    for start in range(0, n, _BLOCK):
        batch: Batch = envs.sample(environment, seed, split, np.arange(start, min(start + _BLOCK, n), dtype=np.int64))
        if isinstance(batch, BanditBatch):
            deciding = (batch.theta, batch.action_set)
        else:
            assert isinstance(batch, envs.MDPBatch)
            deciding = (batch.weights, batch.rewards)
        for row in zip(*deciding, strict=True):
            digests.add(blake2b(b"".join(part.tobytes() for part in row), digest_size=16).digest())
    return digests
