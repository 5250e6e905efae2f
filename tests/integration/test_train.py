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


def test_without_a_dataset_on_disk_it_ends_in_the_same_bits(
    unkilled: Path, config: Path, tmp_path: Path, commands: Any, lasting_records: Records
) -> None:
    root = tmp_path / "virtual"
    words = (config, f"storage.root={root}", "dataset.source=virtual")
    assert "nothing to write; next: python -m train" in commands.run("data_gen", *words)
    commands.run("train", *words)
    made = only_run(root)
    assert made.name == unkilled.name, "the source is no part of what a run is"
    assert (made / "model.safetensors").read_bytes() == (unkilled / "model.safetensors").read_bytes()
    assert lasting_records(made) == lasting_records(unkilled)
    imitation = []
    for run in (made, unkilled):
        commands.run("eval", run)
        imitation.append(json.loads((run / "results.json").read_text())["imitation"])
    assert imitation[0] == imitation[1]
    assert imitation[0]["trajectories"] == 256
    assert [path.name for path in root.iterdir()] == ["runs"]


def test_fresh_data_is_the_same_for_an_epoch_and_new_after_it(config: Path, tmp_path: Path, commands: Any) -> None:
    root = tmp_path / "fresh"
    words = (config, f"storage.root={root}", "dataset.source=virtual")
    losses = []
    for fresh in ("false", "true"):
        seen = set((root / "runs").glob("*"))
        commands.run("train", *words, "train.steps=70", "train.log_every=1", f"dataset.fresh={fresh}")
        (run,) = set((root / "runs").iterdir()) - seen
        records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        losses.append({r["step"]: r["tags"]["train/loss"] for r in records if "train/loss" in r["tags"]})
    again, new = losses
    assert len(again) == len(new) == 70
    same = [step for step in again if again[step] == new[step]]
    assert same == list(range(1, 63)), "an epoch has 2000 // 32 steps"
