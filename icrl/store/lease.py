"""A lock in an object store: an object that its holder keeps changing, and that says who held it last.

A lock file of a disk dies with its holder; an object does not. So the holder puts it anew every `RENEW_S` seconds, and
whoever wants it watches: where it changes, somebody works; where it does not for `EXPIRES_S` seconds of the watcher's
own clock, the holder is dead and the lock is taken over. Every PUT is conditional on what was read, so of several
takers one wins, and a holder that was cut off for long learns that it lost (`require`). No two clocks are compared.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from icrl.files import json_bytes
from icrl.store.objects import ObjectPath

RENEW_S = 10.0
EXPIRES_S = 45.0
_LOOK_S = 1.0
_PUTS = 3
"""Attempts of a change that meets earlier ones of the same session."""


_unrenewed: set[str] = set()
"""Tokens of sessions of this process that have stopped renewing before their end, for whatever reason."""


class LeaseLostError(OSError):
    """Somebody else holds the lock: what this process would write is no longer wanted."""


@dataclass(frozen=True)
class Holder:
    """What the lock object says."""

    token: str
    """Of the session that holds it, or that held it last."""
    owner: str
    held: bool
    renewals: int = 0


@contextlib.contextmanager
def leased(lock: ObjectPath, token: str, owner: str, *, dead: str | None = None) -> Iterator[str | None]:
    """Hold the lock while the block runs; yields the token of the session that held it last, None without one.

    `dead` is the token of a session that is known to have ended, whatever the lock says.

    Raises:
        ValueError: somebody holds it; names who, and what to do.
        OSError: the store does not answer, or refuses.
    """
    before, tag = _read(lock)
    if before is not None and before.held and before.token != dead:
        before, tag = _watch(lock, before, tag)
    mine = _put(lock, Holder(token, owner, held=True), tag)
    if mine is None:
        raise ValueError(_in_use(lock, _read(lock)[0]))
    renewal = _Renewal(lock, Holder(token, owner, held=True), mine)
    renewal.start()
    try:
        yield before.token if before else None
    finally:
        renewal.end()


def require(lock: ObjectPath, token: str) -> None:
    """Check that the session of this token still holds the lock.

    Raises:
        LeaseLostError: it does not, and names who does; or this process no longer renews it.
        OSError: the store does not answer, or refuses.
    """
    holder, _ = _read(lock)
    if holder is None:
        lost = "is gone"
    elif not holder.held:
        lost = "was given back"
    elif holder.token != token:
        lost = f"is held by {holder.owner}"
    else:
        lost = "is no longer renewed" if token in _unrenewed else ""
    if lost:
        raise LeaseLostError(
            f"{lock} {lost}: this command no longer works on the run, and writes nothing more to it; run it again once "
            "the other has ended"
        )


class _Renewal(threading.Thread):
    """Changes the object until told to end, then gives it back."""

    def __init__(self, lock: ObjectPath, holder: Holder, tag: str) -> None:
        super().__init__(name="lease", daemon=True)
        self._lock, self._holder, self._tag = lock, holder, tag
        self._ended, self._lost = threading.Event(), False

    def run(self) -> None:
        try:
            while not self._lost and not self._ended.wait(RENEW_S):
                with contextlib.suppress(OSError):  # the store is away: it may be back before the lock expires
                    self._change(held=True)
        finally:
            if not self._ended.is_set():
                _unrenewed.add(self._holder.token)

    def end(self) -> None:
        self._ended.set()
        self.join()
        if not self._lost:
            with contextlib.suppress(OSError):  # it expires
                self._change(held=False)

    def _change(self, *, held: bool) -> None:
        self._holder = dataclasses.replace(self._holder, held=held, renewals=self._holder.renewals + 1)
        tag = _put(self._lock, self._holder, self._tag)
        if tag is None:
            self._lost = True
        else:
            self._tag = tag


def _watch(lock: ObjectPath, holder: Holder, tag: str | None) -> tuple[Holder | None, str | None]:
    """What `_read` saw last, once its holder has given it back or is dead; ValueError as soon as it is renewed.

    The lock is to be taken with this tag and no later one: behind that may be the next holder.
    """
    deadline = time.monotonic() + EXPIRES_S
    while time.monotonic() < deadline:
        time.sleep(_LOOK_S)
        now, tag = _read(lock)
        if now is None or not now.held:
            return now, tag
        if now != holder:
            raise ValueError(_in_use(lock, now))
    return holder, tag


def _in_use(lock: ObjectPath, holder: Holder | None) -> str:
    who = "another command" if holder is None else holder.owner
    return (
        f"{lock.parent} is in use by {who}, which keeps renewing {lock}: end that command first. The lock of one that "
        f"is dead needs no clearing: it is taken over after {EXPIRES_S:.0f} s without a renewal"
    )


def _read(lock: ObjectPath) -> tuple[Holder | None, str | None]:
    """What the object says, and its tag; None twice where there is none."""
    try:
        data, tag = lock.read_tagged()
    except FileNotFoundError:
        return None, None
    try:
        return Holder(**json.loads(data)), tag
    except (ValueError, TypeError) as error:
        raise ValueError(f"{lock} is no lock of icrl's ({error}): delete it, or choose another place") from None


def _put(lock: ObjectPath, holder: Holder, tag: str | None) -> str | None:
    """The new tag; None where another session has changed the object since `tag`, or there is none any more.

    Raises:
        OSError: the store does not answer, or refuses; what was put may have arrived all the same.
    """
    for _ in range(_PUTS):
        new = lock.write_tagged(json_bytes(asdict(holder)), tag)
        if new is not None:
            return new
        found, tag = _read(lock)
        if found is None or found.token != holder.token:
            return None
        if found == holder:
            return tag
        # an earlier change of ours whose answer was lost: once more, on top of that
    raise OSError(f"{lock}: the store neither takes a conditional PUT nor says who else has changed the object")
