"""Writes checkpoints while training goes on: a thread of rank 0, one checkpoint in flight."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from torch import Tensor

from icrl.config import Config
from icrl.files import fsync_file
from icrl.mirror import Mirror
from icrl.run_dir import RunDirectory
from train import checkpoints
from train.checkpoints import CheckpointError


class CheckpointWriter:
    """Hashes, writes and prunes in the background what the loop has copied to host memory.

    Of a run in an object store it puts there what it wrote (`icrl.mirror`).

    The interpreter waits for what is in flight when it exits; a kill leaves a partial directory, which the next start
    sweeps away.
    """

    def __init__(self, run: RunDirectory, config: Config) -> None:
        self._run = run
        self._keep, self._steps = config.train.keep_checkpoints, config.train.steps
        self._model = checkpoints.described(config)
        self._mirror = Mirror.of(run)
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._in_flight: Future[None] | None = None

    @property
    def failed(self) -> bool:
        """Whether the checkpoint in flight has come to grief; `wait` then raises why."""
        return self._in_flight is not None and self._in_flight.done() and self._in_flight.exception() is not None

    def start(self, step: int, tensors: Mapping[str, Tensor], progress: Mapping[str, Any]) -> None:
        """Begin to write; the tensors must not change from here on. The one before must have been waited for."""
        assert self._in_flight is None, "one in flight"
        self._in_flight = self._thread.submit(self._write, step, tensors, progress)

    def wait(self) -> None:
        """Return once nothing is in flight.

        Raises:
            OSError: it could not be written, or put where the run lies; a `CheckpointError` for what the disk refuses.
        """
        in_flight, self._in_flight = self._in_flight, None
        if in_flight is not None:
            in_flight.result()

    def _write(self, step: int, tensors: Mapping[str, Tensor], progress: Mapping[str, Any]) -> None:
        try:
            self._write_all(step, tensors, progress)
        except OSError:
            raise
        except Exception as error:  # it must reach `wait` as what stops a training in order
            raise CheckpointError(f"the checkpoint of step {step}: {type(error).__name__}: {error}") from error

    def _write_all(self, step: int, tensors: Mapping[str, Tensor], progress: Mapping[str, Any]) -> None:
        # what was recorded up to this step outlives a power cut if the checkpoint does
        fsync_file(self._run.metrics)
        checkpoints.save(self._run.checkpoints, step, tensors, progress, model=self._model, keep=self._keep)
        self._run.set_status("training", step=step, steps=self._steps, workers=progress["workers"])
        if self._mirror is not None:
            self._mirror.push()
