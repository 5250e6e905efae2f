"""`python -m eval`: a kill at any moment, then the same command, ends in the same results.json."""

from __future__ import annotations

import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any


def test_kill_9_of_an_evaluation_loses_nothing(trained: Path, tmp_path: Path, commands: Any) -> None:
    unkilled, killed = tmp_path / "unkilled", tmp_path / "killed"
    for copy in (unkilled, killed):
        shutil.copytree(trained, copy)
    began = time.monotonic()
    assert "transformer / teacher" in commands.run("eval", unkilled)
    duration = time.monotonic() - began

    chance = random.Random(3)
    codes = []
    for _ in range(2):
        moment = time.monotonic() + chance.uniform(0.3, 1.0) * duration
        codes.append(commands.interrupt(signal.SIGKILL, lambda at=moment: time.monotonic() > at, "eval", killed))
    assert -signal.SIGKILL in codes
    commands.run("eval", killed)
    for name in ("results.json", "figures/regret.csv", "figures/regret.svg"):
        assert (killed / name).read_bytes() == (unkilled / name).read_bytes(), name


def test_a_change_outside_eval_is_refused(trained: Path, commands: Any) -> None:
    assert "eval." in commands.run("eval", trained, "train.steps=20", code=2)
    assert not (trained / "results.json").exists()
