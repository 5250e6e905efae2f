"""What a connected cluster can give, so that what it can never give is said at once instead of waited for."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from icrl.config import Loaded
from train.launch import TrainPlan


def _alive(without: Collection[str] = ()) -> list[dict[str, float]]:
    """The resources of each node, but for those of these ids."""
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node["Resources"] for node in nodes if node["Alive"] and node["NodeID"] not in without]


def node_count() -> int:
    """Nodes of the connected cluster that can hold work."""
    return sum(resources.get("CPU", 0) >= 1 for resources in _alive())


def gpu_count() -> int:
    """GPUs of the connected cluster."""
    return int(sum(resources.get("GPU", 0) for resources in _alive()))


def places(loaded: Loaded, plan: TrainPlan, without: Collection[str] = ()) -> int:
    """Training workers that fit on the nodes of the connected cluster, all else put aside; `without` are node ids."""
    threads, gpu = loaded.config.train.threads, plan.device != "CPU"
    total = 0
    for resources in _alive(without):
        fit = int(resources.get("CPU", 0)) // threads
        total += min(fit, int(resources.get("GPU", 0))) if gpu else fit
    return total


def require_capacity(loaded: Loaded, plan: TrainPlan) -> None:
    """Refuse a training that the cluster could never place.

    Raises:
        ValueError: fewer workers fit on its nodes than asked for; names what there is.
    """
    threads, room = loaded.config.train.threads, places(loaded, plan)
    if room < plan.workers:
        nodes = _alive()
        there = ", ".join(f"{resources.get('CPU', 0):g} CPUs" for resources in nodes)
        raise ValueError(
            f"train.workers = {plan.workers}, each with train.threads = {threads}: expected at most {room} of "
            f"them on this cluster ({len(nodes)} nodes: {there}); lower train.workers or train.threads, or add nodes"
        )
