"""What a trial needs of the cluster, and whether the cluster can ever give it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from cluster.sweep_file import SweepFile
from icrl.config import ConfigError, Problem
from train.launch import TrainPlan

Resources = dict[str, float]


def per_worker(sweep: SweepFile, plan: TrainPlan, threads: int) -> Resources:
    """What Ray reserves for one training worker: a share of `ray.resources_per_trial`, or what the training uses.

    Raises:
        ConfigError: GPUs that cannot be divided over the workers.
    """
    asked = sweep.config.ray.resources_per_trial
    gpu = plan.device != "CPU"
    resources = {"CPU": float(threads) if asked.CPU is None else asked.CPU / plan.workers}
    gpus = float(plan.workers * gpu) if asked.GPU is None else asked.GPU
    if gpus % plan.workers and gpus >= 1:
        raise ConfigError([_problem(sweep, "GPU", gpus, f"a multiple of train.workers ({plan.workers})", "")])
    if gpus:
        resources["GPU"] = gpus / plan.workers
    return resources


def local_nodes(sweep: SweepFile, gpus: int, needed: float) -> list[Resources]:
    """This machine as a cluster: CPUs are counted up to what trials need by themselves, never up to what was asked."""
    cpus = float(os.cpu_count() or 1)
    if sweep.config.ray.resources_per_trial.CPU is None:
        cpus = max(cpus, needed)
    return [{"CPU": cpus, "GPU": float(gpus)}]


def places(resources: Mapping[str, float], nodes: Sequence[Mapping[str, float]]) -> int:
    """How many workers with these resources fit on the nodes at once."""
    return sum(
        min(int(node.get(name, 0.0) / amount + 1e-9) for name, amount in resources.items() if amount) for node in nodes
    )


def require_places(
    sweep: SweepFile, workers: int, resources: Mapping[str, float], nodes: Sequence[Mapping[str, float]]
) -> None:
    """Refuse trials that would wait for ever.

    Raises:
        ConfigError: a trial's workers do not fit on the nodes, all at once; says what there is.
    """
    if places(resources, nodes) >= workers:
        return
    there = "; ".join(f"{node.get('CPU', 0):g} CPUs" + _gpus(node) for node in nodes) or "no node"
    needs = " and ".join(f"{workers * amount:g} {name}s" for name, amount in resources.items())
    name = next(
        (n for n in resources if sum(node.get(n, 0.0) for node in nodes) < workers * resources[n] - 1e-9), "CPU"
    )
    remedy = f"lower it, or train.workers ({workers}) or train.threads; each worker must fit on one node"
    raise ConfigError([_problem(sweep, name, f"{needs} a trial", f"no more than the nodes have ({there})", remedy)])


def concurrency(sweep: SweepFile, workers: int, resources: Mapping[str, float], nodes: Sequence[Resources]) -> int:
    """How many trials run at a time: `ray.max_concurrent`, and never more than have a place."""
    fit = max(1, places(resources, nodes) // workers)
    asked = sweep.config.ray.max_concurrent
    return fit if asked == "auto" else min(asked, fit)


def _gpus(node: Mapping[str, float]) -> str:
    return f" and {node['GPU']:g} GPUs" if node.get("GPU") else ""


def _problem(sweep: SweepFile, name: str, got: object, expected: str, remedy: str) -> Problem:
    path = f"ray.resources_per_trial.{name}"
    return Problem(path, got, expected, remedy, sweep.sources.get(path, ""))
