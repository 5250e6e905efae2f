"""Trajectories per second of one core in tabular MDPs: the compiled rollouts against a dense NumPy loop, in one run.

CPU time of this process, medians of 5 after a warm-up that compiles. The kernels' time holds everything from the seed
to the arrays: random numbers, environments, optimal policies, planning and rollout; the loop is given its environment
and its random numbers.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from benchmarks import naive_mdp
from icrl.config import (
    AlgorithmConfig,
    ContextComponent,
    EnvironmentConfig,
    GridWorldConfig,
    PSRLConfig,
    TabularMDPConfig,
    UCBVIConfig,
    UniformConfig,
)
from icrl.rollout import generate
from icrl.streams import Split

MDP = TabularMDPConfig(n_states=20, n_actions=5, episode_length=20, episodes=20)
LAYERED = TabularMDPConfig(n_states=20, n_actions=5, episode_length=20, episodes=20, stationary=False)
ROOM = GridWorldConfig(side=10, episode_length=20, episodes=20)
UCB_VI = UCBVIConfig(bonus=0.1)
SOFT = UCBVIConfig(bonus=0.1, temperature=0.1)
KERNELS: dict[str, tuple[EnvironmentConfig, AlgorithmConfig, int]] = {
    "uniform": (MDP, UniformConfig(), 4096),
    "ucb_vi": (MDP, UCB_VI, 2048),
    "soft_ucb_vi": (MDP, SOFT, 2048),
    "psrl": (MDP, PSRLConfig(), 128),
    "ucb_vi_layered": (LAYERED, UCB_VI, 1024),
    "ucb_vi_dark_room": (ROOM, UCB_VI, 2048),
}
"""And how many trajectories each is measured with."""
TARGET = 3000.0
"""UCB-VI's trajectories per CPU second asked of a quiet core of a server; shown, as a slower machine is no failure."""
FLOOR = 20.0
"""Smallest ratio of UCB-VI to the dense loop that counts as a success."""
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
    """`per_second` of each contestant, the `ratio` of UCB-VI to the dense loop, and whether it reaches the `floor`.

    Raises ValueError where the compiled rollout plays an action that the loop's tables do not rank highest.
    """
    per_second: dict[str, float] = {}
    for name, (environment, algorithm, many) in KERNELS.items():
        context, indices = (ContextComponent(algorithm),), np.arange(many // 4 if quick else many)
        generate(environment, context, 0, Split.TRAIN, indices[:1])
        per_second[name] = rate(partial(generate, environment, context, 0, Split.TRAIN, indices), indices.size)
    few = 4 if quick else 16
    problems = [naive_mdp.Problem(MDP, UCB_VI, 0, Split.TRAIN, index) for index in range(few)]
    played = generate(MDP, (ContextComponent(UCB_VI),), 0, Split.TRAIN, np.arange(few)).action
    for problem, actions in zip(problems, played, strict=True):
        naive_mdp.ucb_vi(problem, follow=actions)
    per_second["ucb_vi_dense_loop"] = rate(lambda: [naive_mdp.ucb_vi(problem) for problem in problems], few)
    ratio = per_second["ucb_vi"] / per_second["ucb_vi_dense_loop"]
    return {
        "mdp": {"n_states": 20, "n_actions": 5, "episode_length": 20, "episodes": 20},
        "per_second": per_second,
        "target": TARGET,
        "ratio": ratio,
        "floor": FLOOR,
        "passed": ratio >= FLOOR,
    }


def table(result: dict[str, Any]) -> str:
    """The result of `run` for a terminal."""
    lines = [f"{'S=20 A=5 H=20 K=20, one core':30}{'per CPU second':>16}{'us each':>12}"]
    lines += [f"{name:30}{value:16,.0f}{1e6 / value:12,.1f}" for name, value in result["per_second"].items()]
    lines.append(f"{'ucb_vi over dense loop':30}{result['ratio']:15,.0f}x (floor {result['floor']:,.0f}x)")
    lines.append(f"{'ucb_vi target':30}{result['target']:16,.0f}")
    return "\n".join(lines)
