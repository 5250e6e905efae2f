"""The one writer of metrics: `metrics.jsonl` is the truth, the TensorBoard event file is made from the same records.

Tags are grouped as train/ eval/ theory/ perf/ data/ health/. Opening a board again drops the records that the caller
does not keep (those past the checkpoint it resumes from) and writes one fresh event file from what is left.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from icrl.files import atomic_write
from icrl.run_dir import RunDirectory

Record = dict[str, Any]
"""step, time (seconds since 1970), tags: name -> value."""

GROUPS = ("train", "eval", "theory", "perf", "data", "health")


def read_records(path: Path) -> list[Record]:
    """Every whole record of a `metrics.jsonl`; a line torn by a crash ends the list."""
    records: list[Record] = []
    if path.exists():
        for line in path.read_bytes().split(b"\n")[:-1]:
            try:
                records.append(json.loads(line))
            except ValueError:
                break
    return records


class Board:
    """Scalars, texts and figures of one run."""

    def __init__(self, run: RunDirectory, keep: Callable[[Record], bool]) -> None:
        """Open the run's board with the records that `keep` accepts."""
        self._path = run.metrics
        kept = [record for record in read_records(run.metrics) if keep(record)]
        atomic_write(run.metrics, b"".join(_line(record) for record in kept))
        shutil.rmtree(run.board, ignore_errors=True)
        self._writer = SummaryWriter(logdir=str(run.board), flush_secs=10)
        self._writer.add_text("config", f"```yaml\n{(run.path / 'resolved.yaml').read_text()}```", 0)
        for record in kept:
            self._write(record)
        self._stream = run.metrics.open("ab")

    def scalars(self, step: int, tags: Mapping[str, float]) -> None:
        """Append one record. A value that is not finite is recorded as health/nonfinite = 1 beside the others."""
        values: dict[str, float] = {}
        for tag, value in tags.items():
            if tag.partition("/")[0] not in GROUPS:
                raise ValueError(f"tag {tag}: expected a group of {', '.join(GROUPS)}")
            if math.isfinite(value):
                values[tag] = float(value)
            else:
                values["health/nonfinite"] = 1.0
        record = {"step": step, "time": time.time(), "tags": values}
        self._stream.write(_line(record))
        self._stream.flush()
        self._write(record)

    def image(self, tag: str, png: Path, step: int) -> None:
        """A PNG file as an image summary."""
        import numpy as np
        from matplotlib.image import imread

        pixels = np.asarray(imread(png))[..., :3]
        self._writer.add_image(tag, (pixels * 255).astype(np.uint8), step, dataformats="HWC")

    def close(self) -> None:
        """Flush and close both files."""
        self._stream.close()
        self._writer.close()

    def _write(self, record: Record) -> None:
        for tag, value in record["tags"].items():
            self._writer.add_scalar(tag, value, record["step"], walltime=record["time"])


def _line(record: Record) -> bytes:
    return json.dumps(record, separators=(",", ":")).encode() + b"\n"
