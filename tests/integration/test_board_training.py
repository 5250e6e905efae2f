"""What real trainings record, read back through TensorBoard's HTTP API: one was killed on its way, one diverged."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from icrl.board import read_records
from tests.board_page import Page, board, until

SHORT = ("dataset.source=virtual", "train.workers=1", "train.steps=30", "train.log_every=2", "train.validate_every=10")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, tiny: str, commands: Any) -> Path:
    """`killed`, trained with a kill on the way and evaluated, and `diverged`."""
    root = tmp_path_factory.mktemp("board")
    config = root / "tiny.yaml"
    config.write_text(tiny)
    killed = root / "runs" / "killed"
    words = (config, f"storage.root={root}", f"run.dir={killed}", *SHORT)

    def midway() -> bool:
        return bool(list(killed.glob("checkpoints/step-*"))) and read_records(killed / "metrics.jsonl")[-1]["step"] > 9

    assert commands.interrupt(signal.SIGKILL, midway, "train", *words) == -signal.SIGKILL
    assert read_records(killed / "metrics.jsonl")[-1]["step"] < 30
    commands.run("train", *words)
    commands.run("eval", killed)
    wild = ("train.optimizer.lr=1e30", "train.clip=0", "train.schedule.warmup=0", "train.schedule.kind=constant")
    diverged = (config, f"storage.root={root}", f"run.dir={root}/runs/diverged", *SHORT, *wild)
    commands.run("train", *diverged, "train.log_every=1", code=1)
    return root


@pytest.fixture(scope="module")
def page(root: Path) -> Iterator[Page]:
    with board(root / "runs", "--port", 0) as (page, _):
        until(lambda: set(page.json("runs")) == {"killed", "diverged"})
        until(lambda: len(page.sessions()) == 2)
        yield page


def recorded(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Tag -> (step, value as float32), from `metrics.jsonl`."""
    found: dict[str, list[tuple[int, float]]] = {}
    for record in read_records(run / "metrics.jsonl"):
        for tag, value in record["tags"].items():
            found.setdefault(tag, []).append((record["step"], float(np.float32(value))))
    return found


def shown(page: Page, run: str) -> dict[str, list[tuple[int, float]]]:
    """The same, from the page."""
    tags = page.json("plugin/scalars/tags")[run]
    points = {tag: page.json("plugin/scalars/scalars", run=run, tag=tag) for tag in tags}
    return {tag: [(step, value) for _, step, value in points[tag]] for tag in points}


def test_the_page_shows_every_number_of_a_killed_run_once(root: Path, page: Page) -> None:
    expected = recorded(root / "runs" / "killed")
    assert {tag.partition("/")[0] for tag in expected} == {"train", "eval", "perf", "data"}
    assert [step for step, _ in expected["train/loss"]] == list(range(2, 31, 2))
    assert [step for step, _ in expected["train/validation_loss"]] == [10, 20, 30]
    assert shown(page, "killed") == expected
    assert page.sessions()["killed"]["status"] == "STATUS_SUCCESS"


def test_the_page_shows_that_a_run_diverged(root: Path, page: Page) -> None:
    found = shown(page, "diverged")
    assert found == recorded(root / "runs" / "diverged")
    ((step, value),) = [point for point in found["health/nonfinite"] if point[1]]
    assert value == 1
    assert step == 1 + found["train/loss"][-1][0], "the step that was not made"
    assert page.sessions()["diverged"]["status"] == "STATUS_FAILURE"
