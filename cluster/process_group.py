"""How the workers of a training find each other: through a private file where they share a machine, else over TCP.

torch's TCP store listens on every interface and asks nobody for a password. Workers of one machine need none: they meet
in a file of the run directory and talk over the loopback.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from ray.train.torch import TorchConfig
from ray.train.torch.config import (
    _set_torch_distributed_env_vars,
    _TorchBackend,
)


@dataclass
class ProcessGroupConfig(TorchConfig):
    """Ray Train's torch config, with a directory in which workers of one machine meet."""

    meeting: str = ""

    @property
    def backend_cls(self) -> type[Any]:
        """The class that starts the process group."""
        return _MeetingBackend


class _MeetingBackend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Start the process group in all workers; over TCP, as Ray does, where they are on several nodes."""
        import ray

        if len(set(worker_group.execute(_node))) > 1:
            super().on_start(worker_group, backend_config)
            return
        worker_group.execute(_set_torch_distributed_env_vars)
        # a name of its own for every start: what a killed group left in a file would confuse the next
        place = Path(backend_config.meeting) / f"store-{secrets.token_hex(4)}"
        shared = (backend_config.backend, str(place), len(worker_group), backend_config.timeout_s)
        started = [worker_group.execute_single_async(rank, _join, rank, *shared) for rank in range(len(worker_group))]
        ray.get(started)


def _node() -> str:
    import ray

    node: str = ray.get_runtime_context().get_node_id()
    return node


def _join(rank: int, backend: str, store: str, world_size: int, timeout_s: int) -> None:
    import torch.distributed as dist

    # else either listens on the machine's outward address
    os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = "lo"
    Path(store).parent.mkdir(parents=True, exist_ok=True)
    patience = timedelta(seconds=timeout_s)
    dist.init_process_group(
        backend=backend, init_method=f"file://{store}", rank=rank, world_size=world_size, timeout=patience
    )
