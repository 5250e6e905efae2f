"""A sweep on disk: the one truth about it, whatever Ray keeps beside it.

    runs/<sweep>/{sweep.json, stop.json, table.csv, table.parquet, figures/capacity.{png,svg,csv}, logs/, trials/}
    runs/<sweep>/trials/<0007>-<8 hex>/   a run directory, with trial.json

What has been done is read from the trials' run directories; sweep.json says which trials there are.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cluster.sweep_file import SweepFile, shown
from cluster.sweep_trials import Trial, common, text_of, varied
from icrl.config import difference
from icrl.files import locked, make_directory, read_json, write_json
from icrl.run_dir import RunConflictError, RunDirectory

_VERSION = 1
EARLY = "early_terminate"
"""The reason of a stop request that ends a trial for good."""

Outcome = Literal["waiting", "done", "early", "diverged", "failed"]
"""waiting: still to be run or finished; early: stopped by early_terminate."""


def outcome(run: RunDirectory) -> Outcome:
    """How a trial has ended, if it has."""
    state = run.status()["state"]
    if state == "done" and run.results.is_file():
        return "done"
    if state == "diverged":
        return "diverged"
    if state == "failed":
        return "failed"
    if state != "trained" and run.stop_requested() == EARLY:
        return "early"
    return "waiting"


@dataclass(frozen=True)
class SweepDirectory:
    """Paths and records of one sweep."""

    path: Path

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    @property
    def record(self) -> Path:
        return self.path / "sweep.json"

    def read(self) -> dict[str, Any] | None:
        """`sweep.json`, or None before there is one.

        Raises:
            RunConflictError: the directory holds something else.
        """
        if not self.record.exists():
            strangers = (
                [p.name for p in self.path.iterdir() if p.name not in ("logs", ".lock")] if self.path.is_dir() else []
            )
            strangers = [name for name in strangers if not name.endswith(".partial")]
            if strangers:
                raise RunConflictError(
                    f"{self.path}: expected an empty directory or a sweep, got {', '.join(sorted(strangers)[:5])}; "
                    "give the sweep another name"
                )
            return None
        values: dict[str, Any] = read_json(self.record)
        if values.get("version") != _VERSION:
            raise RunConflictError(f"{self.record}: version {values.get('version')}, expected {_VERSION}")
        return values

    def write(self, sweep: SweepFile, trials: list[Trial]) -> None:
        """Replace `sweep.json` with these trials."""
        make_directory(self.path / "trials")
        self.logs.mkdir(exist_ok=True)
        write_json(self.record, definition(sweep, trials))

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Held by the one command that runs the sweep; a second one is refused with a ValueError."""
        make_directory(self.path)
        return locked(self.path / ".lock")

    def trial(self, name: str) -> RunDirectory:
        """The run directory of a trial."""
        return RunDirectory(self.path / "trials" / name)

    def session_of(self, name: str) -> str | None:
        """The session that worked last on a trial."""
        path = self.path / "trials" / name / "trial.json"
        return str(read_json(path)["session"]) if path.exists() else None

    def request_stop(self, reason: str) -> None:
        """Ask for no further trial to start."""
        write_json(self.path / "stop.json", {"reason": reason})

    def stop_requested(self) -> bool:
        """Whether no further trial may start."""
        return (self.path / "stop.json").exists()

    def clear_stop_request(self) -> None:
        """Forget a stop request."""
        (self.path / "stop.json").unlink(missing_ok=True)


def definition(sweep: SweepFile, trials: list[Trial]) -> dict[str, Any]:
    """What `sweep.json` holds."""
    return {
        "version": _VERSION,
        "name": sweep.name,
        "description": sweep.config.description,
        "base": str(sweep.base),
        "sweep": shown(sweep.config),
        "varied": varied(trials),
        "common": common(trials),
        "trials": [
            {"number": trial.number, "directory": trial.name, "hash": trial.hash, "overrides": trial.overrides}
            for trial in trials
        ],
    }


def numbered(trials: list[Trial], before: Mapping[str, Any] | None, sweep: str) -> list[Trial]:
    """The trials with their numbers and directories: one that the sweep had before keeps its own, so that it is not run
    again; new ones come after all that there were."""
    if before is None:
        return [trial.placed(trial.number, sweep) for trial in trials]
    known = {entry["hash"]: entry["number"] for entry in before["trials"]}
    following = 1 + max(known.values(), default=-1)
    placed = []
    for trial in trials:
        number = known.get(trial.hash)
        if number is None:
            number, following = following, following + 1
        placed.append(trial.placed(number, sweep))
    return sorted(placed, key=lambda trial: trial.number)


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What is new, gone or changed between two `sweep.json`, a line each; nothing for the same sweep."""
    after = json.loads(json.dumps(after))
    lines = [f"changed  {line}" for line in difference(before["sweep"], after["sweep"])]
    shared = {key: (before["common"].get(key), after["common"].get(key)) for key in before["common"] | after["common"]}
    lines += [f"changed  {key}: {old} -> {new} (every trial)" for key, (old, new) in shared.items() if old != new]
    old = {entry["hash"]: entry for entry in before["trials"]}
    new = {entry["hash"]: entry for entry in after["trials"]}
    gone = {key: entry for key, entry in old.items() if key not in new}
    arrived = {key: entry for key, entry in new.items() if key not in old}
    for key, entry in list(gone.items()):
        twins = [other for other, candidate in arrived.items() if candidate["overrides"] == entry["overrides"]]
        if twins:
            lines.append(f"changed  trial {entry['number']}: {text_of(entry['overrides'])} (runs again)")
            del gone[key], arrived[twins[0]]
    lines += [f"new      trial {entry['number']}: {text_of(entry['overrides'])}" for entry in arrived.values()]
    lines += [f"gone     trial {entry['number']}: {text_of(entry['overrides'])}" for entry in gone.values()]
    return lines
