"""The lock of an object store where PUTs overtake each other and answers get lost; the store is one of this process."""

from __future__ import annotations

import json
from typing import Any

import pytest

from icrl.store import lease
from icrl.store.lease import Holder, LeaseLostError, _put, _Renewal, leased, require


class Lock:
    """An object with conditional PUTs: its tag counts its changes."""

    parent = "s3://bucket/run"

    def __init__(self) -> None:
        self.data: bytes | None = None
        self.changes = 0
        self.lost_answers = 0

    def __str__(self) -> str:
        return f"{self.parent}/lock.json"

    def read_tagged(self) -> tuple[bytes, str]:
        if self.data is None:
            raise FileNotFoundError
        return self.data, str(self.changes)

    def write_tagged(self, data: bytes, tag: str | None) -> str | None:
        if tag != (None if self.data is None else str(self.changes)):
            return None
        self.data, self.changes = data, self.changes + 1
        if self.lost_answers:
            self.lost_answers -= 1
            raise OSError("the connection broke before the answer")
        return str(self.changes)

    def says(self, token: str, *, held: bool = True) -> None:
        """Somebody's unconditional word."""
        self.data, self.changes = json.dumps(vars(Holder(token, token, held))).encode(), self.changes + 1


@pytest.fixture
def lock(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(lease, "RENEW_S", 3600.0)
    monkeypatch.setattr(lease, "_LOOK_S", 0.01)
    monkeypatch.setattr(lease, "EXPIRES_S", 0.05)
    return Lock()


@pytest.mark.parametrize("left", ["given back", "dead"])
def test_of_two_waiters_the_slower_one_does_not_steal_from_the_faster(
    lock: Any, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    """The faster one takes the lock right after the slower one has last looked at it."""
    lock.says("first", held=True)
    watch = lease._watch

    def overtaken(*seen: Any) -> Any:
        if left == "given back":
            lock.says("first", held=False)
        found = watch(*seen)
        lock.says("faster")
        return found

    monkeypatch.setattr(lease, "_watch", overtaken)
    with pytest.raises(ValueError, match="is in use by faster"), leased(lock, "slower", "slower"):
        pass
    require(lock, "faster")


def test_a_change_whose_answer_was_lost_costs_nothing(lock: Any) -> None:
    with leased(lock, "mine", "me"):
        renewal = _Renewal(lock, Holder("mine", "me", held=True), str(lock.changes))
        for _ in range(2):
            lock.lost_answers = 1
            with pytest.raises(OSError, match="broke before"):
                renewal._change(held=True)
        renewal._change(held=True)
        assert not renewal._lost
        assert json.loads(lock.data)["renewals"] == 3
        require(lock, "mine")
    lock.says("other")
    renewal._change(held=True)
    assert renewal._lost
    require(lock, "other")


def test_a_put_that_is_never_taken_is_no_loss_of_the_lock(lock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lock.says("mine")
    monkeypatch.setattr(lock, "write_tagged", lambda data, tag: None)
    with pytest.raises(OSError, match="neither takes a conditional PUT nor"):
        _put(lock, Holder("mine", "me", held=True, renewals=1), "0")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_session_whose_renewal_has_ended_does_not_hold_the_lock(lock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any, *, held: bool) -> None:
        raise RuntimeError("a fault of the thread")

    monkeypatch.setattr(_Renewal, "_change", broken)
    monkeypatch.setattr(lease, "RENEW_S", 0.01)
    renewal = _Renewal(lock, Holder("mine", "me", held=True), "1")
    lock.says("mine")
    require(lock, "mine")
    renewal.start()
    renewal.join()
    with pytest.raises(LeaseLostError, match="is no longer renewed"):
        require(lock, "mine")
