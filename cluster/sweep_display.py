"""The one display of a sweep, drawn by the driver from the run directories: a live table on a terminal, else lines."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from cluster.sweep_state import Outcome, SweepDirectory, outcome
from cluster.sweep_table import last_validation
from cluster.sweep_trials import Trial, text_of
from icrl.board import read_records

_LINE_EVERY_S = 30.0
_LOOK_EVERY_S = 1.0
_SHOWN = 12
"""Rows of the live table: those at work, and the last to end."""


@dataclass
class _Line:
    trial: Trial
    text: str
    outcome: Outcome = "waiting"
    ended: float = 0.0
    at_work: bool = False
    stage: str = ""
    step: int = 0
    note: str = ""


class Display:
    """`with Display(...) as display: display.update()`, as often as one likes."""

    def __init__(
        self, directory: SweepDirectory, trials: Sequence[Trial], session: str, on_change: Callable[[], object]
    ) -> None:
        """`on_change` is called when trials have ended, in the thread that calls `update`."""
        self._directory, self._session, self._on_change = directory, session, on_change
        self._lines = [_Line(trial, text_of(trial.overrides)) for trial in trials]
        for line in self._lines:
            line.outcome = outcome(directory.trial(line.trial.name))
        self._waiting = sum(line.outcome == "waiting" for line in self._lines)
        self._began = self._spoke = time.monotonic()
        self._looked = 0.0
        self._live: Any = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(stderr=True), auto_refresh=False, transient=True)

    def __enter__(self) -> Display:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, *, last: bool = False) -> None:
        """Look at the trials and draw what has changed; at most once a second, but for the last time."""
        now = time.monotonic()
        if now - self._looked < _LOOK_EVERY_S and not last:
            return
        self._looked = now
        ended = [line for line in self._lines if line.outcome == "waiting" and self._look(line, now)]
        for line in ended:
            self._say(f"trial {line.trial.number}: {line.text}: {_WORDS[line.outcome]}{line.note and ', ' + line.note}")
        if ended:
            self._on_change()
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
        elif now - self._spoke >= _LINE_EVERY_S:
            self._spoke = now
            at_work = "; ".join(f"trial {line.trial.number} {_doing(line)}" for line in self._lines if line.at_work)
            self._say(f"{self._summary(now)}{at_work and '; ' + at_work}")

    def _look(self, line: _Line, now: float) -> bool:
        """Whether the trial has ended since the last look."""
        run = self._directory.trial(line.trial.name)
        status = run.status()
        line.at_work = self._directory.session_of(line.trial.name) == self._session
        line.stage, line.step = status["state"], status.get("step", 0)
        if line.at_work and line.stage == "failed" and "error" not in status:
            return False
        line.outcome = outcome(run) if line.at_work or line.stage == "failed" else "waiting"
        if line.outcome == "early" and line.stage != "stopped":
            line.outcome = "waiting"  # asked to stop, on its way to a checkpoint
        if line.outcome == "waiting":
            records = [record for record in read_records(run.metrics) if "train/loss" in record["tags"]]
            if records:
                line.step = max(line.step, records[-1]["step"])
                line.note = f"loss {records[-1]['tags']['train/loss']:.4f}"
            return False
        line.at_work, line.ended = False, now
        validation = last_validation(run)
        line.note = status.get("error", "") or (f"validation loss {validation[1]:.4f}" if validation else "")
        return True

    def _say(self, text: str) -> None:
        if self._live is not None:
            self._live.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=sys.stderr, flush=True)  # noqa: T201

    def _summary(self, now: float) -> str:
        counts = Counter(line.outcome for line in self._lines)
        at_work = sum(line.at_work for line in self._lines)
        parts = [f"{counts['done']} of {len(self._lines)} trials done", f"{at_work} at work"]
        parts += [f"{counts[name]} {_WORDS[name]}" for name in ("early", "diverged", "failed") if counts[name]]
        finished = self._waiting - counts["waiting"]
        spent = now - self._began
        left = f", about {_clock(spent / finished * counts['waiting'])} left" if finished and counts["waiting"] else ""
        return f"{', '.join(parts)}, {_clock(spent)}{left}"

    def _table(self) -> Any:
        from rich.table import Table

        now = time.monotonic()
        table = Table(title=self._summary(now), title_justify="left", box=None, pad_edge=False)
        # what has a width keeps it in a narrow terminal; the overrides give way
        table.add_column("trial", justify="right", no_wrap=True, min_width=5)
        table.add_column("", no_wrap=True)
        table.add_column("stage", no_wrap=True, min_width=10)
        table.add_column("step", justify="right", no_wrap=True, min_width=11)
        table.add_column("", no_wrap=True, min_width=22)
        at_work = [line for line in self._lines if line.at_work]
        ended = sorted((line for line in self._lines if line.ended), key=lambda line: line.ended)
        for line in [*ended[-max(0, _SHOWN - len(at_work)) :], *at_work[:_SHOWN]]:
            steps = line.trial.loaded.config.train.steps
            stage = _STAGES.get(line.stage, line.stage) if line.at_work else _WORDS[line.outcome]
            table.add_row(str(line.trial.number), line.text, stage, f"{line.step:,}/{steps:,}", line.note)
        return table


_WORDS: dict[str, str] = {
    "done": "done", "early": "early stop", "diverged": "diverged", "failed": "failed", "waiting": "waiting",
}  # fmt: skip
_STAGES = {"created": "starting", "trained": "evaluating", "stopped": "starting"}


def _doing(line: _Line) -> str:
    share = 100 * line.step / line.trial.loaded.config.train.steps
    return f"{_STAGES.get(line.stage, line.stage)} {share:.0f}%"


def _clock(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
