"""Trajectories per second of one core: the compiled kernels against the usual loops, in one run.

Medians of 5 after a warm-up that compiles, of CPU time (wall time, shown beside it, charges us for our neighbours). The
kernels' time holds everything from the seed to the arrays: random numbers, environments, rollout; the loops are given
their environments and noise.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import committed, naive
from icrl import envs, streams
from icrl.config import (
    AlgorithmConfig,
    BernoulliBanditConfig,
    ContextComponent,
    EnvironmentConfig,
    LinearBanditConfig,
    LinUCBConfig,
    ThompsonConfig,
    UCBConfig,
    UniformConfig,
)
from icrl.rollout import generate
from icrl.streams import Split, Stream

LINEAR = LinearBanditConfig(dim=5, n_actions=10, horizon=200, noise_std=1.5)
LINUCB = LinUCBConfig(ridge=1.0, confidence=2.0)
BERNOULLI = BernoulliBanditConfig(n_actions=5, horizon=200)
UCB = UCBConfig(index="shrunk", bonus=1.0)
REPEATS = 5

Play = Callable[[], list[int]]


@dataclass(frozen=True)
class Kernel:
    """A compiled rollout."""

    environment: EnvironmentConfig
    algorithm: AlgorithmConfig
    target: float | None
    """Trajectories per CPU second asked of one quiet core of a server; shown, for a slower machine is no failure."""
    many: int = 16_384
    """Trajectories of one measurement, by default a shard of Experiment 1; a quarter of it in a quick run."""


@dataclass(frozen=True)
class Loop:
    """What users write instead of a kernel."""

    kernel: str
    """Which one."""
    plays: Callable[[npt.NDArray[np.int64]], Iterator[Play]]
    """Trajectory indices -> what plays each, with its environment and noise in hand."""
    floor: float
    """Smallest ratio of the kernel to this loop that counts as a success."""
    same_actions: bool = True
    """Whether its random numbers, and so its actions, are the kernel's."""
    few: int = 12
    """Trajectories of one measurement; a quarter of it in a quick run."""


def _linear(loop: Callable[..., list[int]]) -> Callable[[npt.NDArray[np.int64]], Iterator[Play]]:
    def plays(indices: npt.NDArray[np.int64]) -> Iterator[Play]:
        batch = envs.sample(LINEAR, 0, Split.TRAIN, indices)
        noise = LINEAR.noise_std * streams.normals(0, Split.TRAIN, Stream.REWARD, indices, LINEAR.horizon)
        for problem in zip(batch.action_set, batch.means, noise, strict=True):
            yield partial(loop, *(part.astype(np.float64) for part in problem), LINUCB.ridge, LINUCB.confidence)

    return plays


def _bernoulli(
    loop: Callable[..., list[int]], last: Callable[[npt.NDArray[np.int64]], Iterator[Any]]
) -> Callable[[npt.NDArray[np.int64]], Iterator[Play]]:
    """`last` gives the loop's third argument for each index."""

    def plays(indices: npt.NDArray[np.int64]) -> Iterator[Play]:
        means = envs.sample(BERNOULLI, 0, Split.TRAIN, indices).means.astype(np.float64)
        noise = streams.uniforms(0, Split.TRAIN, Stream.REWARD, indices, BERNOULLI.horizon).astype(np.float64)
        for problem in zip(means, noise, last(indices), strict=True):
            yield partial(loop, *problem)

    return plays


def _uniforms(indices: npt.NDArray[np.int64]) -> Iterator[Any]:
    yield from streams.uniforms(0, Split.TRAIN, Stream.ALGORITHM, indices, BERNOULLI.horizon).astype(np.float64)


KERNELS = {
    "linucb_kernel": Kernel(LINEAR, LINUCB, 250_000),
    "soft_linucb_kernel": Kernel(LINEAR, LinUCBConfig(ridge=1.0, confidence=2.0, temperature=0.3), None),
    "thompson_kernel": Kernel(LINEAR, ThompsonConfig(prior_variance=1.0, noise_variance=2.25), 250_000),
    "uniform_arms_kernel": Kernel(BERNOULLI, UniformConfig(), 250_000),
    "ucb_arms_kernel": Kernel(BERNOULLI, UCB, 250_000),
    "beta_thompson_kernel": Kernel(BERNOULLI, ThompsonConfig(), 40_000, many=12_288),
}
LOOPS = {
    "linucb_recompute_loop": Loop("linucb_kernel", _linear(naive.recompute), 1000),
    "linucb_incremental_loop": Loop("linucb_kernel", _linear(naive.incremental), 300),
    "uniform_arms_loop": Loop("uniform_arms_kernel", _bernoulli(naive.uniform, _uniforms), 20, few=256),
    "ucb_arms_loop": Loop(
        "ucb_arms_kernel", _bernoulli(naive.ucb, lambda indices: iter([UCB.bonus] * len(indices))), 200, few=64
    ),
    "beta_thompson_loop": Loop(
        "beta_thompson_kernel",
        _bernoulli(naive.beta_thompson, lambda indices: map(np.random.default_rng, indices)),
        20,
        same_actions=False,
        few=64,
    ),
}


def rates(work: Callable[[], object], trajectories: int) -> tuple[float, float]:
    """Trajectories per CPU second and per second, medians of REPEATS."""
    cpu, wall = [], []
    for _ in range(REPEATS):
        start, began = time.process_time(), time.perf_counter()
        work()
        cpu.append(trajectories / (time.process_time() - start))
        wall.append(trajectories / (time.perf_counter() - began))
    return statistics.median(cpu), statistics.median(wall)


def run(quick: bool) -> dict[str, Any]:  # noqa: FBT001 - the signature of every benchmark
    """`per_second` (of CPU) and `per_wall_second` of each contestant, the kernels' `targets` and `ratios` over their
    loops, and whether the `floors` of these are met.

    Raises ValueError where a loop plays other actions than its kernel: then the times would not be comparable.
    """
    measured: dict[str, tuple[float, float]] = {}
    for name, kernel in KERNELS.items():
        context = (ContextComponent(kernel.algorithm),)
        generate(kernel.environment, context, 0, Split.TRAIN, np.arange(1))
        indices = np.arange(kernel.many // 4 if quick else kernel.many)
        work = partial(generate, kernel.environment, context, 0, Split.TRAIN, indices)
        measured[name] = rates(work, len(indices))
    for name, loop in LOOPS.items():
        kernel = KERNELS[loop.kernel]
        indices = np.arange(loop.few // 4 if quick else loop.few)
        plays = list(loop.plays(indices))
        played = [play() for play in plays]
        compiled = generate(kernel.environment, (ContextComponent(kernel.algorithm),), 0, Split.TRAIN, indices)
        if loop.same_actions and not np.array_equal(played, compiled.action):
            raise ValueError(f"{name} and {loop.kernel} play different actions")
        measured[name] = rates(lambda some=plays: [play() for play in some], len(plays))  # type: ignore[misc]
    ratios = {name: measured[loop.kernel][0] / measured[name][0] for name, loop in LOOPS.items()}
    floors = {name: loop.floor for name, loop in LOOPS.items()}
    written = committed.run(quick)
    return {
        "per_second": {name: cpu for name, (cpu, _) in measured.items()},
        "per_wall_second": {name: wall for name, (_, wall) in measured.items()},
        "targets": {name: kernel.target for name, kernel in KERNELS.items() if kernel.target},
        "ratios": ratios,
        "floors": floors,
        "committed": written,
        "passed": all(ratios[name] >= floor for name, floor in floors.items()) and written["passed"],
    }


def table(result: dict[str, Any]) -> str:
    """The result of `run` for a terminal."""
    lines = [f"{'trajectories, one core':26}{'per CPU second':>16}{'target':>10}{'us each':>12}{'per second':>14}"]
    for name, value in result["per_second"].items():
        target = f"{result['targets'][name]:,.0f}" if name in result["targets"] else ""
        lines.append(f"{name:26}{value:16,.0f}{target:>10}{1e6 / value:12,.2f}{result['per_wall_second'][name]:14,.0f}")
    for name, ratio in result["ratios"].items():
        lines.append(f"{LOOPS[name].kernel:26}{ratio:16,.0f} times {name} (floor {result['floors'][name]:,.0f})")
    lines += ["", committed.table(result["committed"])]
    return "\n".join(lines)
