"""What is known about a batch whose loss or gradient is not finite, for whoever looks for the reason."""

from __future__ import annotations

import math

import numpy as np
import torch.distributed as dist

from icrl.files import write_json
from icrl.run_dir import RunDirectory
from train.dataset import Batch, Indices
from train.engine import DivergedError

FILE = "diverged.json"
"""In the run directory: step, reason, loss of each rank's share (null: not finite), whether each rank's data is finite,
and the trajectories of the global batch, by their index in the split `train`; rank r has the r-th equal part. Step and
reason alone where it is the validation log-loss that is not finite."""


def record(run: RunDirectory, error: DivergedError, step: int, batch: Batch, trajectories: Indices) -> str:
    """Write `FILE` for optimiser step `step` (0-based); every rank calls it. A line that says where to look."""
    path = run.path / FILE
    if error.own_loss is None:
        if dist.get_rank() == 0:
            write_json(path, {"step": step, "reason": str(error)})
        return f"{error} after step {step}: {path}"
    finite = all(bool(np.isfinite(values).all()) for values in batch.values() if values.dtype.kind == "f")
    own = error.own_loss if math.isfinite(error.own_loss) else None
    seen: list[tuple[float | None, bool]] = [(own, finite)] * dist.get_world_size()
    dist.all_gather_object(seen, (own, finite))
    losses, sound = [list(column) for column in zip(*seen, strict=True)]
    bad = [rank for rank, loss in enumerate(losses) if loss is None]
    if dist.get_rank() == 0:
        found = {"step": step, "reason": str(error), "loss_of_rank": losses, "finite_data_of_rank": sound}
        write_json(path, found | {"trajectories": trajectories.tolist()})
    where = f" on rank {', '.join(map(str, bad))}" if bad else ""
    return f"{error}{where} in step {step}, before the update; its {len(trajectories)} trajectories: {path}"


def forget(run: RunDirectory) -> None:
    """Training goes on: what an earlier attempt met is no longer so."""
    (run.path / FILE).unlink(missing_ok=True)
