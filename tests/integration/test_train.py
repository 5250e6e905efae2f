"""`python -m train`: its own ranks without Ray, resumable to the bit after kill -9 at any time."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import pickletools
import random
import secrets
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest

from icrl.config import load
from icrl.run_dir import RunDirectory

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


def chance() -> random.Random:
    """Drawn anew each time; a test that fails shows the seed, and KILL_SEED repeats it."""
    seed = int(os.environ.get("KILL_SEED", secrets.randbelow(2**32)))
    print(f"KILL_SEED={seed}")
    return random.Random(seed)


def kill_9(commands: Any, rng: random.Random, root: Path, first: int, last: int, *words: object) -> int:
    """Train, and kill the driver or one of its ranks a moment after a step between `first` and `last`; who it was."""
    process = commands.start("train", *words)
    reached = at_step(root, rng.randint(first, last))
    deadline = time.monotonic() + 200
    while not reached():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "training never came so far"
        time.sleep(0.01)
    time.sleep(rng.uniform(0, 0.05))
    ranks = [child for child in psutil.Process(process.pid).children() if "train" in child.cmdline()]
    victim = rng.randrange(-1, 2)
    print(f"killed: {'the driver' if victim < 0 else f'rank {victim}'}")
    os.kill(process.pid if victim < 0 else ranks[victim].pid, signal.SIGKILL)
    process.communicate(timeout=120)
    assert process.returncode not in (0, 2)
    psutil.wait_procs(ranks, timeout=60)
    return victim


@pytest.fixture
def unkilled(reference: Path) -> Path:
    return only_run(reference)


@pytest.fixture
def root(reference: Path, tmp_path: Path) -> Path:
    """A storage root with the dataset alone."""
    shutil.copytree(reference / "data", tmp_path / "root" / "data")
    return tmp_path / "root"


@pytest.fixture
def require_same_bits(lasting_records: Records, event_series: Series) -> Callable[[Path, Path], None]:
    """Weights, the last checkpoint (optimiser and progress), metrics and TensorBoard series of two runs."""

    def compare(run: Path, expected: Path) -> None:
        last = sorted((expected / "checkpoints").iterdir())[-1].name
        files = [f"checkpoints/{last}/{name}" for name in ("engine.safetensors", "progress.json", "manifest.json")]
        for name in ("model.safetensors", *files):
            assert (run / name).read_bytes() == (expected / name).read_bytes(), name
        assert lasting_records(run) == lasting_records(expected)
        assert event_series(run) == event_series(expected)

    return compare


def test_kill_9_of_anyone_at_any_step_ends_in_the_same_bits(
    unkilled: Path, root: Path, config: Path, commands: Any, require_same_bits: Any
) -> None:
    words = (config, f"storage.root={root}")
    kill_9(commands, chance(), root, 5, 50, *words)
    commands.run("train", *words)
    require_same_bits(only_run(root), unkilled)
    assert "already trained" in commands.run("train", *words)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3])
def test_kill_9_again_and_again_ends_in_the_same_bits(
    stage: int, root: Path, reference: Path, config: Path, tmp_path: Path, commands: Any, require_same_bits: Any
) -> None:
    """A checkpoint every other step, so that one is being written whenever a kill falls."""
    often = ("train.checkpoint_every=2", "train.log_every=1")
    options = (f"train.zero_stage={stage}", f"train.deterministic={stage == 3}", *often)
    shutil.copytree(reference / "data", tmp_path / "quiet" / "data")
    commands.run("train", config, f"storage.root={tmp_path / 'quiet'}", *options)
    rng = chance()
    for first in (3, 20, 40):
        kill_9(commands, rng, root, first, first + 14, config, f"storage.root={root}", *options)
    commands.run("train", config, f"storage.root={root}", *options)
    require_same_bits(only_run(root), only_run(tmp_path / "quiet"))


@pytest.fixture(scope="module")
def quiet(reference: Path, commands: Any) -> Callable[[int, int], Path]:
    """The run of so many workers under a ZeRO stage that nothing disturbed."""

    @cache
    def run(workers: int, stage: int) -> Path:
        root = reference.with_name(f"{reference.name}-{workers}-{stage}")
        shutil.copytree(reference / "data", root / "data")
        options = (f"train.workers={workers}", f"train.zero_stage={stage}", "train.log_every=1")
        commands.run("train", reference / "tiny.yaml", f"storage.root={root}", *options)
        return only_run(root)

    return run


def change_workers(
    commands: Any, config: Path, root: Path, before: tuple[int, int], after: tuple[int, int]
) -> tuple[Path, int]:
    """Stop a run of (workers, stage) on its way, and end it with others; the run and the step between."""
    words = (config, f"storage.root={root}", "train.log_every=1")
    begun = (*words, f"train.workers={before[0]}", f"train.zero_stage={before[1]}")
    assert commands.interrupt(signal.SIGTERM, at_step(root, 17), "train", *begun) == 143
    run = only_run(root)
    step = json.loads((run / "status.json").read_text())["step"]
    other = (f"run.dir={run}", f"train.workers={after[0]}", f"train.zero_stage={after[1]}")
    output = commands.run("train", *words, *other)
    assert f"resuming on {after[0]} workers what began on {before[0]}" in output
    assert list((root / "runs").iterdir()) == [run]
    return run, step


def require_close(run: Path, expected: Path, step: int) -> None:
    """The training losses: bit-equal up to `step`, then within 2e-4 of each other.

    Losses of neighbouring batches differ by a hundred times as much: another order of the data would be seen.
    """
    losses, whole = (
        [record["tags"]["train/loss"] for record in records if "train/loss" in record["tags"]]
        for records in (map(json.loads, (at / "metrics.jsonl").read_text().splitlines()) for at in (run, expected))
    )
    assert len(losses) == len(whole) == 60
    assert losses[:step] == whole[:step]
    assert losses[step:] == pytest.approx(whole[step:], abs=2e-4)
    assert losses[step:] != whole[step:], "sums round differently"
    steps = sorted(abs(later - loss) for loss, later in zip(whole[step:], whole[step + 1 :], strict=False))
    assert steps[len(steps) // 2] > 2e-2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after"),
    [((2, 1), (1, 1)), ((1, 1), (2, 1)), ((2, 3), (1, 3)), ((1, 3), (2, 1))],
)
def test_a_run_goes_on_with_other_workers_and_another_stage(
    before: tuple[int, int], after: tuple[int, int], root: Path, quiet: Any, config: Path, commands: Any
) -> None:
    run, step = change_workers(commands, config, root, before, after)
    require_close(run, quiet(*before), step)


def test_a_disk_that_refuses_a_checkpoint_ends_the_run_and_loses_nothing(
    unkilled: Path, root: Path, config: Path, require_same_bits: Any, commands: Any
) -> None:
    words = (config, f"storage.root={root}")
    # no file may grow beyond 40 blocks of 1 kB: the first checkpoint does
    limited = ["bash", "-c", 'ulimit -f 40; exec "$@"', "bash", sys.executable, "-m", "train", *map(str, words)]
    done = subprocess.run(limited, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1, done.stderr[-3000:]
    run = only_run(root)
    told = f"failed: {run}/checkpoints: the checkpoint of step 8 cannot be written (File too large): it needs "
    assert told in done.stderr
    assert "the same command then goes on from step 0" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert list((run / "checkpoints").iterdir()) == []
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "failed"
    assert "cannot be written" in status["error"]
    commands.run("train", *words)
    require_same_bits(run, unkilled)


@pytest.mark.slow
@pytest.mark.parametrize("small_disk", ["2m"], indirect=True)  # enough for the checkpoints of the tiny model
def test_a_disk_that_fills_up_in_training_ends_it_and_costs_only_the_steps_since_a_checkpoint(
    small_disk: Path, unkilled: Path, reference: Path, config: Path, commands: Any, require_same_bits: Any
) -> None:
    run = small_disk / "runs" / "x"
    words = (config, f"storage.root={reference}", f"run.dir={run}")
    process = commands.start("train", *words)
    reached = at_step(small_disk, 20)
    while not reached():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    ballast = small_disk / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(512))
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1, output
    assert f"failed: {run}/checkpoints: the checkpoint" in output or f"{run}/metrics.jsonl'" in output, output
    assert "No space left on device" in output
    assert not list(run.glob("checkpoints/.*"))
    assert "its disk has" in commands.run("train", *words, code=2)
    ballast.unlink()
    commands.run("train", *words)
    require_same_bits(run, unkilled)


def test_sigterm_writes_a_checkpoint_and_the_same_command_goes_on(
    unkilled: Path, config: Path, root: Path, commands: Any, require_same_bits: Any
) -> None:
    code = commands.interrupt(signal.SIGTERM, at_step(root, 10), "train", config, f"storage.root={root}")
    assert code == 143
    status = json.loads((only_run(root) / "status.json").read_text())
    assert status["state"] == "stopped"
    assert list((only_run(root) / "checkpoints").glob(f"step-{status['step']:08d}"))
    commands.run("train", config, f"storage.root={root}")
    require_same_bits(only_run(root), unkilled)


def test_what_is_damaged_is_named_and_what_was_before_used(
    reference: Path, tmp_path: Path, config: Path, commands: Any, require_same_bits: Any
) -> None:
    """The final weights and the newest checkpoint: both are made again from the checkpoint before."""
    root = tmp_path / "copy"
    shutil.copytree(reference, root)
    run = only_run(root)
    newest = sorted((run / "checkpoints").glob("step-*"))[-1] / "engine.safetensors"
    for file in (newest, run / "model.safetensors"):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    refused = commands.run("eval", run, code=2)
    assert f"{run}/model.safetensors: damaged: its weights do not match their sha256" in refused
    output = commands.run("train", config, f"storage.root={root}")
    assert f"written again   {run}/model.safetensors: damaged: its weights do not match their sha256" in output
    assert f"{newest.parent} is damaged (engine.safetensors does not match its sha256)" in output
    require_same_bits(run, only_run(reference))


def test_where_no_checkpoint_can_be_used_nothing_is_deleted_and_none_begun(
    unkilled: Path, root: Path, config: Path, commands: Any
) -> None:
    words = (config, f"storage.root={root}")
    run = only_run(root) if (root / "runs").exists() else RunDirectory.open(load(config, words[1:])).path
    shutil.copytree(unkilled, run, dirs_exist_ok=True)
    (run / "model.safetensors").unlink()
    kept = sorted((run / "checkpoints").iterdir())
    for path in kept:
        (path / "progress.json").write_text("{")
    metrics = (run / "metrics.jsonl").read_bytes()
    output = commands.run("train", *words, code=1)
    assert f"expected a whole checkpoint to resume from, got {len(kept)} damaged ones" in output
    assert all(f"{path}: progress.json does not match its sha256" in output for path in kept)
    assert output.count("expected a whole checkpoint") == 1, "said once, by one rank"
    assert sorted((run / "checkpoints").iterdir()) == kept
    assert (run / "metrics.jsonl").read_bytes() == metrics


def test_a_stop_while_the_ranks_start_is_a_stop(
    unkilled: Path, config: Path, root: Path, commands: Any, require_same_bits: Any
) -> None:
    words = ("train", config, f"storage.root={root}")
    process = commands.start(*words)

    def ranks() -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):  # it has other children before, for a moment
            return [child for child in psutil.Process(process.pid).children() if "RANK" in child.environ()]
        return []

    while not ranks():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.terminate()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 143, output
    assert "stopped, exit code 143; the same command resumes" in output
    assert RunDirectory(only_run(root)).status()["state"] == "stopped"
    commands.run(*words)
    require_same_bits(only_run(root), unkilled)


def test_a_checkpoint_of_another_model_is_refused_before_any_process_starts(
    unkilled: Path, root: Path, config: Path, commands: Any
) -> None:
    words = (f"storage.root={root}", "model.embed_dim=32", "environment.noise_std=0.25")
    run = RunDirectory.open(load(config, words))
    shutil.copytree(unkilled / "checkpoints", run.checkpoints)
    output = commands.run("train", config, *words, code=2)
    assert f"{run.checkpoints}/step-00000060 is a checkpoint of another model (checkpoint -> config):" in output
    assert "  environment.noise_std: 0.5 -> 0.25\n  model.embed_dim: 16 -> 32\n" in output
    assert not (run.path / "status.json").exists()


def is_pickle(data: bytes) -> bool:
    try:
        return bool(list(pickletools.genops(data)))
    except ValueError:
        return False


def test_a_run_directory_holds_no_pickle(unkilled: Path) -> None:
    files = [path for path in unkilled.rglob("*") if path.is_file()]
    assert len(files) > 10
    # torch.save writes zip archives
    assert [path for path in files if zipfile.is_zipfile(path) or is_pickle(path.read_bytes())] == []
    assert is_pickle(pickle.dumps({"state": unkilled}))


def test_any_checkpoint_is_exported(reference: Path, tmp_path: Path, commands: Any) -> None:
    import icrl

    run = only_run(reference)
    output = commands.run("train", "export", run, "--to", tmp_path / "last")
    assert "exported: step 60" in output
    assert (tmp_path / "last" / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    commands.run("train", "export", run, "--to", tmp_path / "first", "--step", 56)
    first, last = (icrl.from_pretrained(tmp_path / name) for name in ("first", "last"))
    assert first.config == last.config
    assert any(not a.equal(b) for a, b in zip(first.parameters(), last.parameters(), strict=True))
    refused = commands.run("train", "export", run, "--to", tmp_path / "last", code=2)
    assert "holds a model already" in refused
    refused = commands.run("train", "export", run, "--to", tmp_path / "none", "--step", 8, code=2)
    assert "expected one of [56, 60]" in refused


def test_what_cannot_be_done_is_said_before_anything_is_written(config: Path, tmp_path: Path, commands: Any) -> None:
    root = tmp_path / "empty"
    output = commands.run("train", config, f"storage.root={root}", code=2)
    assert "python -m data_gen" in output
    output = commands.run("train", config, f"storage.root={root}", "train.global_batch=33", "train.workers=2", code=2)
    assert "take train.global_batch=32" in output
    assert not root.exists()


def test_without_a_dataset_on_disk_it_ends_in_the_same_bits(
    reference: Path, config: Path, tmp_path: Path, commands: Any, lasting_records: Records
) -> None:
    copy = tmp_path / "stored"
    shutil.copytree(reference, copy)
    unkilled = only_run(copy)
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
