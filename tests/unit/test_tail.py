"""Following a file of records: each once, also where the file is being written, is replaced or is not there yet."""

from __future__ import annotations

import json
from pathlib import Path

import icrl.tail
from icrl.board import Board
from icrl.config import load
from icrl.progress import Progress, _show
from icrl.run_dir import RunDirectory
from icrl.tail import Tail


def line(step: int, time: float = 0.0) -> bytes:
    return json.dumps({"step": step, "time": time, "tags": {"train/loss": 1 / step}}).encode() + b"\n"


def steps(tail: Tail) -> list[int]:
    return [record["step"] for record in tail.new()]


def test_each_record_is_told_once_and_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path)
    assert steps(tail) == []
    path.write_bytes(line(1) + line(2) + line(3)[:9])
    assert steps(tail) == [1, 2]
    assert steps(tail) == []
    with path.open("ab") as file:
        file.write(line(3)[9:])
    assert steps(tail) == [3]
    path.unlink()
    assert steps(tail) == []
    path.write_bytes(line(1, 1))
    assert steps(tail) == [1]


def test_only_what_is_new_is_parsed(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"".join(map(line, range(1, 2001))))
    tail, parsed = Tail(path), []
    assert len(tail.new()) == 2000
    monkeypatch.setattr(icrl.tail, "json", Counting(parsed))
    with path.open("ab") as file:
        file.write(line(2001))
    assert steps(tail) == [2001]
    assert len(parsed) == 1


class Counting:
    """Stands for the module json."""

    def __init__(self, parsed: list[bytes]) -> None:
        self._parsed = parsed

    def loads(self, data: bytes) -> object:
        self._parsed.append(data)
        return json.loads(data)


def test_a_file_that_was_replaced_is_told_from_its_beginning(tmp_path: Path) -> None:
    """As a run does that resumes: fewer records, in a file that may have grown past the old one's size since."""
    path = tmp_path / "metrics.jsonl"
    for replaced in (line(1), line(1) + line(2, 7.5), line(1) + line(2, 7.5) + line(3, 7.5) + line(4)):
        path.write_bytes(line(1) + line(2) + line(3))
        tail = Tail(path)
        assert steps(tail) == [1, 2, 3]
        path.write_bytes(replaced)
        assert steps(tail) == list(range(1, replaced.count(b"\n") + 1))
        assert steps(tail) == []


def test_the_display_shows_where_a_resumed_run_is(tmp_path: Path) -> None:
    run = RunDirectory.open(load("configs/demo.yaml", [f"storage.root={tmp_path}"]))
    shown: list[float] = []

    class Shown(Progress):
        def update(self, done: float, note: str = "") -> None:
            shown.append(done)

    tail = Tail(run.metrics)
    for kept, step in ((0, 10), (10, 20), (10, 15)):
        board = Board(run, keep=lambda record, kept=kept: record["step"] <= kept)
        board.scalars(step, {"train/loss": 0.5})
        _show(tail, Shown())
        board.scalars(step, {"train/validation_loss": 0.5})
        _show(tail, Shown())
        board.close()
    assert shown == [10, 20, 15]
