"""The one progress display, drawn by whoever drives a command: a live bar on a terminal, else a line every 30 s."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from types import TracebackType

from icrl.run_dir import RunDirectory
from icrl.tail import Tail

_INTERVAL = 30.0
_POLL = 0.5


class Progress:
    """Stages of a command, one after the other: `with Progress() as p: p.start("generate", total); p.update(done)`."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._from: tuple[float, float] | None = None
        """How far the stage was when it was first heard of, and when that was."""
        self._stage, self._total, self._began, self._spoke = "", 0.0, 0.0, 0.0
        if self._live:
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bars

            columns = (
                TextColumn("{task.description:<9}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}%"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
            )
            self._bars = Bars(*columns, console=Console(stderr=True))

    def __enter__(self) -> Progress:
        if self._live:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._bars.stop()

    def start(self, stage: str, total: float) -> None:
        """Begin a stage of `total` units."""
        self._stage, self._total, self._began = stage, total, time.monotonic()
        self._spoke = self._began
        self._from = None
        if self._live:
            self._task = self._bars.add_task(stage, total=total, note="")

    def update(self, done: float, note: str = "") -> None:
        """How far the stage has come."""
        if self._live:
            self._bars.update(self._task, completed=done, note=note)
            return
        now = time.monotonic()
        self._from = self._from or (done, self._began if done == 0 else now)
        if now - self._spoke >= _INTERVAL:
            self._spoke = now
            taken, begun = now - self._began, self._from[0]
            rate = (done - begun) / max(now - self._from[1], 1e-9)  # a stage that resumes is not begun at nothing
            left = f", {_duration((self._total - done) / rate)} left" if rate > 0 else ""
            share = done / max(self._total, 1)
            self.say(f"{self._stage}: {share:.0%} after {_duration(taken)}{left}{', ' + note if note else ''}")

    def finish(self, note: str) -> None:
        """End the stage with a line that stays."""
        if self._live:
            self._bars.update(self._task, completed=self._total, note=note)
        else:
            self.say(f"{self._stage}: {note} ({time.monotonic() - self._began:.1f} s)")

    def say(self, line: str) -> None:
        """A line beside the display."""
        if self._live:
            self._bars.console.print(line, highlight=False)
        else:
            print(line, file=sys.stderr, flush=True)  # noqa: T201


def _duration(seconds: float) -> str:
    """`42 s`, `12 min` or `3.5 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


@contextlib.contextmanager
def watching(run: RunDirectory, steps: int, progress: Progress) -> Iterator[None]:
    """Follow a training run's metrics while the body waits for it."""
    done = threading.Event()
    metrics = Tail(run.metrics)

    def follow() -> None:
        while not done.wait(_POLL):
            _show(metrics, progress)

    progress.start("train", steps)
    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _show(metrics: Tail, progress: Progress) -> None:
    records = [record for record in metrics.new() if "train/loss" in record["tags"]]
    if records:
        tags = records[-1]["tags"]
        rate = tags.get("perf/trajectories_per_second", 0.0)
        progress.update(records[-1]["step"], f"loss {tags['train/loss']:.4f}, {rate:,.0f} trajectories/s")
