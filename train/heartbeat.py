"""Who keeps the others waiting: every rank leaves word of where it is, and who gives up waiting reads it.

A collective that fails or takes too long says nothing about the rank that did not come. Each rank has a thread that
writes, once a second, its step and what it is doing to a file in the run directory's logs. A process that is stopped or
gone falls silent; one that is stuck goes on writing the same place. The clocks of several nodes must agree to a second.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

from icrl.files import atomic_write, read_json

INTERVAL_S = 1.0
SILENT_S = 5.0
"""Without word for so long, a rank is stopped or gone."""
_BACKUP_S = 30
"""Seconds between what ends a hung collective first, and what would end it if that fails."""
PHASES = ("starting", "reading data", "training", "validating", "saving")
"""In the order of a step."""


def patience(seconds: int, backend: str) -> tuple[timedelta, float]:
    """Timeout of the collectives, and seconds after which a rank's own watch gives up, for `collective_timeout_s`.

    gloo raises an error in the rank that waits, which says more: it goes first. NCCL ends the process: it goes second.
    """
    if backend == "nccl":
        return timedelta(seconds=seconds + _BACKUP_S), seconds
    return timedelta(seconds=seconds), seconds + _BACKUP_S


_COLLECTIVE = re.compile(r"gloo|nccl|timed out|timeout|connection|broken pipe|store", re.IGNORECASE)


class LostRankError(RuntimeError):
    """The ranks can no longer work together; says which one is to blame. The run resumes from its last checkpoint."""


@dataclass(frozen=True)
class Beat:
    """Where a rank was."""

    rank: int
    host: str
    process: int
    step: int
    phase: str
    since: float
    """When it got there, seconds since 1970."""
    time: float
    """When it wrote this."""
    error: str | None = None
    """What it failed of; its last word."""

    @property
    def place(self) -> tuple[int, int]:
        return self.step, PHASES.index(self.phase)


def culprit(beats: Sequence[Beat], now: float) -> Beat | None:
    """The rank the others wait for: one that failed, else the one silent for longest, else the one that is behind all
    others, if any is.
    """
    if failed := [beat for beat in beats if beat.error is not None]:
        return min(failed, key=lambda beat: beat.time)
    silent = [beat for beat in beats if now - beat.time > SILENT_S]
    if silent:
        return min(silent, key=lambda beat: beat.time)
    last = min(beats, key=lambda beat: beat.place, default=None)
    if last is None or any(beat.place == last.place for beat in beats if beat is not last):
        return None
    return last


def described(beat: Beat, now: float) -> str:
    """One line about the rank to blame."""
    who = f"rank {beat.rank} (process {beat.process} on {beat.host})"
    doing = f"{beat.phase} after step {beat.step}"
    if beat.error is not None:
        return f"{who} failed, {doing}: {beat.error}"
    if now - beat.time > SILENT_S:
        return f"{who} has been silent for {now - beat.time:.0f} s; it was last seen {doing}"
    return f"{who} keeps the others waiting: {doing} for {now - beat.since:.0f} s"


class Heart(threading.Thread):
    """This rank's thread. `give_up` is called in it, with a message, when the others have waited long enough.

    That is after `seconds` in one place, if another rank is silent or behind: for backends whose collectives
    do not raise by themselves. A phase that takes long on all ranks alike is left alone.
    """

    def __init__(
        self, folder: Path, rank: int, world: int, seconds: float, give_up: Callable[[str], None] | None = None
    ) -> None:
        super().__init__(daemon=True, name="heartbeat")
        self._folder, self._rank, self._world, self._patience = folder, rank, world, seconds
        self._give_up = give_up or _leave
        self._place = (0, PHASES[0], time.time())
        self._done = threading.Event()
        folder.mkdir(parents=True, exist_ok=True)

    def at(self, step: int, phase: str) -> None:
        """The rank has come to this place."""
        self._place = (step, phase, time.time())

    def start(self) -> None:
        """Begin; the first word is there when this returns."""
        self._write()
        super().start()

    def stop(self, error: str | None = None) -> None:
        """Fall silent for good: in order, or leaving word of an error that ends this rank."""
        if self._done.is_set():
            return
        self._done.set()
        if self.is_alive():
            self.join()
        if error is None:
            self._file(self._rank).unlink(missing_ok=True)
        else:
            self._write(error)

    def run(self) -> None:
        while True:
            self._write()
            now, since = time.time(), self._place[2]
            if now - since > self._patience and (message := self.blame(now)) is not None:
                self._give_up(message)
            if self._done.wait(INTERVAL_S):
                return

    def beats(self) -> list[Beat]:
        """The last word of every rank that has spoken."""
        found = []
        for rank in range(self._world):
            try:
                found.append(Beat(**read_json(self._file(rank))))
            except (OSError, ValueError, TypeError):
                continue
        return found

    def blame(self, now: float) -> str | None:
        """Who keeps the others waiting; None if nobody does, or this rank itself."""
        found = culprit(self.beats(), now)
        return None if found is None or found.rank == self._rank else described(found, now)

    def explained(self, error: RuntimeError) -> LostRankError | None:
        """The error of a collective with the rank to blame; None for an error that has nothing to do with the others.

        A rank whose process has just died is not silent yet: waits until it would be.
        """
        if not _COLLECTIVE.search(str(error)):
            return None
        deadline = time.monotonic() + SILENT_S + 2 * INTERVAL_S
        first = re.sub(r"^\[\S*\] *", "", (str(error).splitlines() or [""])[0])  # without the place in torch's source
        while (message := self._silent()) is None and time.monotonic() < deadline:
            time.sleep(INTERVAL_S / 2)
        message = message or self.blame(time.time()) or "every rank is alive, none is behind"
        return LostRankError(f"{message}; the collective said: {first}")

    def speaks(self) -> bool:
        """Whether this rank is the one to tell the user why the training ends.

        That is the first of those that failed of themselves, else the first that is not silent. Ranks that fail of the
        same at the same time know of each other after a moment.
        """
        time.sleep(INTERVAL_S / 2)
        beats, now = self.beats(), time.time()
        if failed := [beat.rank for beat in beats if beat.error is not None]:
            return self._rank == min(failed)
        return all(now - beat.time > SILENT_S for beat in beats if beat.rank < self._rank)

    def _silent(self) -> str | None:
        """The first rank that failed or is silent, described."""
        now, beats = time.time(), self.beats()
        gone = [beat for beat in beats if beat.error is not None or now - beat.time > SILENT_S]
        found = culprit(gone, now)
        return None if found is None else described(found, now)

    def _write(self, error: str | None = None) -> None:
        step, phase, since = self._place
        beat = Beat(self._rank, socket.gethostname(), os.getpid(), step, phase, since, time.time(), error)
        try:
            atomic_write(self._file(self._rank), json.dumps(asdict(beat)).encode(), durable=False)
        except OSError:  # a full disk stops training elsewhere, with a better message
            return

    def _file(self, rank: int) -> Path:
        return self._folder / f"rank-{rank:05d}.json"


def _leave(message: str) -> None:
    """The main thread hangs in a collective: nothing less ends this process."""
    print(f"failed: {message}", file=sys.stderr, flush=True)  # noqa: T201
    os._exit(1)
