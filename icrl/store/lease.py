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
        _watch(lock, before)
        before, tag = _read(lock)
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
        LeaseLostError: it does not; names who does.
        OSError: the store does not answer, or refuses.
    """
    holder, _ = _read(lock)
    if holder is None or holder.token != token or not holder.held:
        who = "is gone" if holder is None else f"is held by {holder.owner}" if holder.held else "was given back"
        raise LeaseLostError(
            f"{lock} {who}: this command no longer works on the run, and writes nothing more to it; run it again once "
            "the other has ended"
        )


class _Renewal(threading.Thread):
    """Changes the object until told to end, then gives it back."""

    def __init__(self, lock: ObjectPath, holder: Holder, tag: str) -> None:
        super().__init__(name="lease", daemon=True)
        self._lock, self._holder, self._tag = lock, holder, tag
        self._ended, self._lost = threading.Event(), False

    def run(self) -> None:
        while not self._lost and not self._ended.wait(RENEW_S):
            with contextlib.suppress(OSError):  # the store is away: it may be back before the lock expires
                self._change(held=True)

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
            self._lost = True  # `require` tells it to whoever writes
        else:
            self._tag = tag


def _watch(lock: ObjectPath, holder: Holder) -> None:
    """Return once its holder has given it back, or is dead; ValueError as soon as it is renewed."""
    deadline = time.monotonic() + EXPIRES_S
    while time.monotonic() < deadline:
        time.sleep(_LOOK_S)
        now, _ = _read(lock)
        if now is None or not now.held:
            return
        if now != holder:
            raise ValueError(_in_use(lock, now))


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
    """The new tag; None where the object is no longer the one of `tag`."""
    new = lock.write_tagged(json_bytes(asdict(holder)), tag)
    if new is None:
        found, tag = _read(lock)
        return tag if found == holder else None
    return new
