"""Trajectories per second of one core: the compiled kernels against the usual loops, in one run.

CPU time of this process (wall time would charge us for our neighbours), medians of 5 after a warm-up that compiles. The
kernels' time holds everything from the seed to the arrays: random numbers, environments, rollout; the loops are given
their environments and noise.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import committed, naive
from icrl import envs, streams
from icrl.config import AlgorithmConfig, ContextComponent, LinearBanditConfig, LinUCBConfig, ThompsonConfig
from icrl.rollout import generate
from icrl.streams import Split, Stream

ENVIRONMENT = LinearBanditConfig(dim=5, n_actions=10, horizon=200, noise_std=1.5)
LINUCB = LinUCBConfig(ridge=1.0, confidence=2.0)
KERNELS: dict[str, AlgorithmConfig] = {
    "linucb_kernel": LINUCB,
    "soft_linucb_kernel": LinUCBConfig(ridge=1.0, confidence=2.0, temperature=0.3),
    "thompson_kernel": ThompsonConfig(prior_variance=1.0, noise_variance=2.25),
}
LOOPS = {"linucb_recompute_loop": naive.recompute, "linucb_incremental_loop": naive.incremental}
FLOORS = {"over_recompute": 1000.0, "over_incremental": 300.0}
"""Smallest ratio of the LinUCB kernel to each loop that counts as a success."""
REPEATS = 5


def rate(work: Callable[[], object], trajectories: int) -> float:
    """Trajectories per CPU second, median of REPEATS."""
    rates = []
    for _ in range(REPEATS):
        start = time.process_time()
        work()
        rates.append(trajectories / (time.process_time() - start))
    return statistics.median(rates)


def run(quick: bool) -> dict[str, Any]:  # noqa: FBT001 - the signature of every benchmark
    """`per_second` of each contestant, the LinUCB kernel's `ratios` over the loops, and whether the `floors` are met.

    Raises ValueError where a loop plays other actions than the kernel: then the times would not be comparable.
    """
    many, few = (10_240, 3) if quick else (51_200, 12)
    index = np.arange(few)
    batch = envs.sample(ENVIRONMENT, 0, Split.TRAIN, index)
    noise = ENVIRONMENT.noise_std * streams.normals(0, Split.TRAIN, Stream.REWARD, index, ENVIRONMENT.horizon)
    compiled = generate(ENVIRONMENT, (ContextComponent(LINUCB),), 0, Split.TRAIN, index)
    problems = [
        (batch.action_set[i].astype(np.float64), batch.means[i].astype(np.float64), noise[i].astype(np.float64))
        for i in range(few)
    ]
    per_second: dict[str, float] = {}
    for name, config in KERNELS.items():
        context = (ContextComponent(config),)
        generate(ENVIRONMENT, context, 0, Split.TRAIN, index)
        indices = np.arange(many)
        per_second[name] = rate(lambda c=context, i=indices: generate(ENVIRONMENT, c, 0, Split.TRAIN, i), many)  # type: ignore[misc]
    for name, loop in LOOPS.items():
        played = [loop(*problem, LINUCB.ridge, LINUCB.confidence) for problem in problems]
        if not np.array_equal(played, compiled.action):
            raise ValueError(f"{name} and the compiled kernel play different actions")
        per_second[name] = rate(
            lambda f=loop: [f(*problem, LINUCB.ridge, LINUCB.confidence) for problem in problems],  # type: ignore[misc]
            few,
        )
    ratios = {
        "over_recompute": per_second["linucb_kernel"] / per_second["linucb_recompute_loop"],
        "over_incremental": per_second["linucb_kernel"] / per_second["linucb_incremental_loop"],
    }
    written = committed.run(quick)
    return {
        "environment": {"dim": 5, "n_actions": 10, "horizon": 200},
        "per_second": per_second,
        "ratios": ratios,
        "floors": FLOORS,
        "committed": written,
        "passed": all(ratios[name] >= floor for name, floor in FLOORS.items()) and written["passed"],
    }


def table(result: dict[str, Any]) -> str:
    """The result of `run` for a terminal."""
    lines = [f"{'trajectories, one core':26}{'per CPU second':>16}{'us each':>12}"]
    lines += [f"{name:26}{value:16,.0f}{1e6 / value:12,.2f}" for name, value in result["per_second"].items()]
    for name, ratio in result["ratios"].items():
        lines.append(f"linucb_kernel {name:16}{ratio:12,.0f}x (floor {result['floors'][name]:,.0f}x)")
    lines += ["", committed.table(result["committed"])]
    return "\n".join(lines)
