"""`python -m train`: its own ranks without Ray, resumable to the bit after kill -9 at any time."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Records = Callable[[Path], list[tuple[int, dict[str, Any]]]]
Series = Callable[[Path], dict[str, list[tuple[int, float]]]]


def only_run(root: Path) -> Path:
    (run,) = (root / "runs").iterdir()
    return run


def at_step(root: Path, step: int) -> Callable[[], bool]:
    """Whether a run under root has recorded this step."""

    def reached() -> bool:
        for metrics in root.glob("runs/*/metrics.jsonl"):
            steps = [json.loads(line)["step"] for line in metrics.read_bytes().split(b"\n")[:-1]]
            return bool(steps) and steps[-1] >= step
        return False

    return reached


@pytest.fixture
def unkilled(config: Path, tmp_path: Path, commands: Any) -> Path:
    root = tmp_path / "unkilled"
    commands.run("data_gen", config, f"storage.root={root}")
    output = commands.run("train", config, f"storage.root={root}")
    assert "next: python -m eval" in output.splitlines()[-1]
    return only_run(root)


def test_kill_9_at_any_step_ends_in_the_same_bits(
    unkilled: Path, config: Path, tmp_path: Path, commands: Any, lasting_records: Records, event_series: Series
) -> None:
    root = tmp_path / "killed"
    commands.run("data_gen", config, f"storage.root={root}")
    moments = sorted(random.Random(7).sample(range(5, 55), 2))
    for step in moments:
        code = commands.interrupt(signal.SIGKILL, at_step(root, step), "train", config, f"storage.root={root}")
        assert code in (-signal.SIGKILL, None)
    output = commands.run("train", config, f"storage.root={root}")
    killed = only_run(root)
    assert (killed / "model.safetensors").read_bytes() == (unkilled / "model.safetensors").read_bytes()
    assert lasting_records(killed) == lasting_records(unkilled)
    assert event_series(killed) == event_series(unkilled)
    last = "checkpoints/step-00000060/engine.safetensors"
    assert (killed / last).read_bytes() == (unkilled / last).read_bytes(), "optimiser state too"
    assert "already trained" in commands.run("train", config, f"storage.root={root}"), output


def test_sigterm_writes_a_checkpoint_and_the_same_command_goes_on(
    unkilled: Path, config: Path, tmp_path: Path, commands: Any, lasting_records: Records
) -> None:
    root = tmp_path / "stopped"
    commands.run("data_gen", config, f"storage.root={root}")
    code = commands.interrupt(signal.SIGTERM, at_step(root, 10), "train", config, f"storage.root={root}")
    assert code == 143
    status = json.loads((only_run(root) / "status.json").read_text())
    assert status["state"] == "stopped"
    assert list((only_run(root) / "checkpoints").glob(f"step-{status['step']:08d}"))
    commands.run("train", config, f"storage.root={root}")
    stopped = only_run(root)
    assert (stopped / "model.safetensors").read_bytes() == (unkilled / "model.safetensors").read_bytes()
    assert lasting_records(stopped) == lasting_records(unkilled)


def test_a_damaged_checkpoint_is_named_and_the_one_before_used(unkilled: Path, config: Path, commands: Any) -> None:
    before = (unkilled / "model.safetensors").read_bytes()
    newest = sorted((unkilled / "checkpoints").glob("step-*"))[-1] / "engine.safetensors"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    (unkilled / "model.safetensors").unlink()
    (unkilled / "status.json").unlink()
    root = unkilled.parent.parent
    output = commands.run("train", config, f"storage.root={root}")
    assert f"{newest.parent} is damaged (engine.safetensors does not match its sha256)" in output
    assert (unkilled / "model.safetensors").read_bytes() == before


def test_what_cannot_be_done_is_said_before_anything_is_written(config: Path, tmp_path: Path, commands: Any) -> None:
    root = tmp_path / "empty"
    output = commands.run("train", config, f"storage.root={root}", code=2)
    assert "python -m data_gen" in output
    output = commands.run("train", config, f"storage.root={root}", "train.global_batch=33", "train.workers=2", code=2)
    assert "take train.global_batch=32" in output
    assert not root.exists()
