"""Nodes that are about to be taken away: which of them a training is on, and whether the others have room for it.

Ray calls a node draining from the moment its end is announced (a spot instance, a node that is retired with
`ray drain-node`). Work that runs there is left alone until the node is gone; new work goes elsewhere.
"""

from __future__ import annotations

import time

from cluster.capacity import places
from icrl.config import Loaded
from icrl.files import read_json
from icrl.run_dir import RunDirectory
from train.launch import TrainPlan

REASON = "PREEMPTION"
"""Of the stop request in the run directory."""
NODES = "training.json"
"""In the run's logs: the Ray node of each rank."""
_POLL_S = 2.0


class Preemption:
    """Asks the workers of a training to stop after a checkpoint once a node that it cannot do without is draining.

    That is a node of a rank, or `host`: the node of the process with which the training ends, if it is not one that is
    started again elsewhere.
    """

    def __init__(self, run: RunDirectory, host: str | None) -> None:
        self._run, self._host, self._looked, self._asked = run, host, 0.0, False
        (run.logs / NODES).unlink(missing_ok=True)  # of an attempt that is over

    def look(self) -> None:
        """Look whether it is so; at most every two seconds."""
        if self._asked or time.monotonic() - self._looked < _POLL_S:
            return
        self._looked = time.monotonic()
        if draining() & {self._host, *_nodes_of_ranks(self._run)} and self._run.stop_requested() is None:
            self._run.request_stop(REASON)
            self._asked = True

    def can_go_on(self, loaded: Loaded, plan: TrainPlan) -> bool:
        """Whether `host` stays, and the nodes that stay are enough for the training."""
        leaving = draining()
        return self._host not in leaving and places(loaded, plan, without=leaving) >= plan.workers


def draining() -> set[str]:
    """The nodes of the connected cluster whose end is announced."""
    from ray._private.state import state  # what Ray Train's own watcher asks

    return set(state.get_draining_nodes())


def _nodes_of_ranks(run: RunDirectory) -> list[str]:
    path = run.logs / NODES
    return list(read_json(path)["node_of_rank"]) if path.exists() else []
