"""The small parts of training: schedules, early stopping, who is to blame for a wait, what is refused beforehand."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import pytest

from icrl.config import (
    ConfigError,
    EarlyStoppingConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
    load,
)
from icrl.model import Transformer
from train.engine import StepResult
from train.heartbeat import SILENT_S, Beat, Heart, culprit, described
from train.launch import check, device_problems
from train.schedule import learning_rate
from train.validation import BestWeights, EarlyStopping
from train.window import Window


def rates(kind: str, **schedule: float) -> list[float]:
    own = ScheduleConfig(kind=kind, **schedule)  # type: ignore[arg-type]
    train = TrainConfig(steps=100, optimizer=OptimizerConfig(lr=2.0), schedule=own)
    return [learning_rate(train, step) for step in range(train.steps)]


def test_every_schedule_warms_up_linearly() -> None:
    for kind in ("cosine", "wsd", "constant"):
        assert rates(kind, warmup=10)[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])


def test_wsd_stays_at_the_peak_then_falls_linearly_to_the_floor() -> None:
    got = rates("wsd", warmup=10, decay=0.25, floor=0.1)
    assert got[10:75] == [2.0] * 65
    assert got[75:] == pytest.approx([0.2 + 1.8 * left / 25 for left in range(24, -1, -1)])
    assert rates("wsd", warmup=0, decay=0.0) == [2.0] * 99 + [0.0]


def test_cosine_ends_at_the_floor_and_constant_stays() -> None:
    assert rates("cosine", warmup=0, floor=0.5)[-1] == pytest.approx(1.0)
    assert rates("constant", warmup=0) == [2.0] * 100


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"zero_stage": 0, "offload": "optimizer"}, "offload = 'optimizer': expected none with train.zero_stage=0"),
        ({"zero_stage": 0, "precision": "fp16"}, "precision = 'fp16': expected fp32 or bf16 with train.zero_stage=0"),
        ({"zero_stage": 3, "compile": True}, "compile = True: expected false with train.zero_stage=3"),
        ({"steps": 1000, "schedule": {"kind": "wsd", "decay": 0.9}}, "schedule.decay = 0.9: expected at most the part"),
        ({"collective_timeout_s": 1}, "collective_timeout_s = 1: expected at least 5"),
        ({"early_stopping": {"patience": 0}}, "patience = 0: expected at least 1"),
    ],
)
def test_what_does_not_go_together_is_named(values: dict[str, object], expected: str) -> None:
    sections = {"schedule": ScheduleConfig, "early_stopping": EarlyStoppingConfig}
    with pytest.raises(ConfigError) as caught:
        TrainConfig(**{k: sections[k](**v) if isinstance(v, dict) else v for k, v in values.items()})  # type: ignore[arg-type]
    assert expected in str(caught.value)


def test_what_the_device_lacks_is_refused_before_any_process_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load("configs/demo.yaml", [f"storage.root={tmp_path}", "train.precision=fp16", "train.workers=2"])
    with pytest.raises(
        ConfigError, match=r"train.precision = 'fp16': expected fp32 or bf16 on CPU.*train.precision=bf16"
    ):
        check(loaded, gpus=0)
    assert not list(device_problems(loaded.config.train, gpus=2))
    monkeypatch.setenv("CXX", "no-such-compiler")
    (problem,) = device_problems(TrainConfig(compile=True), gpus=0)
    assert "expected false without a C++ compiler" in str(problem)


def test_a_launcher_that_starts_another_number_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3"}.items():
        monkeypatch.setenv(name, value)
    root = f"storage.root={tmp_path}"
    with pytest.raises(ValueError, match=r"train.workers = 2: expected the 3 processes that the launcher started"):
        check(load("configs/demo.yaml", [root, "train.workers=2"]), gpus=0)
    with pytest.raises(ConfigError, match=r"global_batch = 128: expected a multiple of train.workers \(3\)"):
        check(load("configs/demo.yaml", [root]), gpus=0)
    with pytest.raises(ValueError, match=r"started 3 processes here: expected at most one per GPU \(2\)"):
        check(load("configs/demo.yaml", [root, "train.global_batch=126"]), gpus=2)


def test_the_plan_says_how_the_batch_is_divided(tmp_path: Path) -> None:
    words = [
        f"storage.root={tmp_path}",
        "train.workers=2",
        "train.micro_batch=16",
        "train.activation_checkpointing=true",
    ]
    loaded = load("configs/demo.yaml", [*words, "train.early_stopping.patience=3"])
    described = check(loaded, gpus=0).describe(loaded.config)
    assert "128 = 2 workers x 4 micro-batches x 16 trajectories" in described
    assert "ZeRO-1, fp32, activation checkpointing, or 3 validations without improvement" in described


def test_early_stopping_counts_what_does_not_improve_and_survives_a_checkpoint() -> None:
    config = EarlyStoppingConfig(patience=2, min_delta=0.1)
    stopping = EarlyStopping(config)
    seen = []
    for step, loss in enumerate([1.0, 0.95, 0.85, 0.8, 0.76]):
        seen.append((stopping.improves(step, loss), stopping.over))
        stopping = EarlyStopping.of(config, stopping.state())
    assert seen == [(True, False), (False, False), (True, False), (False, False), (False, True)]
    assert (stopping.best_step, stopping.best_loss) == (2, 0.85)
    assert not EarlyStopping(EarlyStoppingConfig(), 0.0, 0, 99).over, "without patience never"


def test_the_best_weights_of_every_kept_checkpoint_are_kept(tmp_path: Path) -> None:
    environment = load("configs/demo.yaml").config.environment
    model = Transformer(ModelConfig(layers=1, heads=1, embed_dim=4, mlp_dim=4), environment)
    best = BestWeights(tmp_path / "best", checkpoints_kept=2)

    def kept() -> list[int]:
        return sorted(int(path.name.removeprefix("step-")) for path in (tmp_path / "best").iterdir())

    for step in (10, 20, 30, 40):
        best.save(step, model)
        best.checkpointed(step)
    assert kept() == [20, 30, 40], "a third checkpoint may still be there while the newest is written"
    assert best.load(20).num_parameters() == model.num_parameters()
    best.keep_only(30)
    assert kept() == [30]
    with pytest.raises(ValueError, match=r"the best validation, of step 20, cannot be read .* in another run\.dir"):
        best.load(20)


NOW = 1000.0


def beat(rank: int, step: int, phase: str = "training", *, silent: float = 0.5) -> Beat:
    return Beat(rank, "node", 100 + rank, step, phase, NOW - 20, NOW - silent)


@pytest.mark.parametrize(
    ("beats", "expected"),
    [
        ([beat(0, 7), beat(1, 7)], None),
        (
            [beat(0, 7), beat(1, 7, silent=30), beat(2, 7, silent=9)],
            "rank 1 (process 101 on node) has been silent for 30",
        ),
        (
            [beat(0, 7), beat(1, 6, "reading data"), beat(2, 7)],
            "rank 1 (process 101 on node) keeps the others",
        ),
        ([beat(0, 7, "validating"), beat(1, 7)], "rank 1 (process 101 on node) keeps the others waiting: training"),
        ([beat(0, 6), beat(1, 6), beat(2, 7)], None),
        ([], None),
    ],
)
def test_the_rank_that_keeps_the_others_waiting_is_named(beats: list[Beat], expected: str | None) -> None:
    found = culprit(beats, NOW)
    assert (found is None) == (expected is None)
    if found is not None:
        assert described(found, NOW).startswith(str(expected))


def test_a_rank_gives_up_by_itself_where_its_collectives_do_not(tmp_path: Path) -> None:
    given_up: list[str] = []
    stuck, late = (Heart(tmp_path, rank, 2, 0.3, given_up.append) for rank in (0, 1))
    stuck.at(5, "training")
    late.at(4, "reading data")
    late.start()
    stuck.start()
    deadline = time.monotonic() + 20
    while not given_up and time.monotonic() < deadline:
        time.sleep(0.05)
    for heart in (stuck, late):
        heart.stop()
    assert given_up
    assert all(message.startswith("rank 1 ") and "reading data after step 4" in message for message in given_up)
    assert not list(tmp_path.iterdir())


def test_a_rank_that_fails_says_so_itself_and_the_others_name_it(tmp_path: Path) -> None:
    hearts = [Heart(tmp_path, rank, 3, 100) for rank in range(3)]
    for heart in hearts:
        heart.start()
    began = time.monotonic()
    for failed in (2, 1):
        hearts[failed].stop("OSError: [Errno 28] No space left on device")
    lost = hearts[0].explained(RuntimeError("gloo: connection closed by peer"))
    assert lost is not None
    assert str(lost).startswith("rank 2 (process ")
    assert "failed, starting after step 0: OSError: [Errno 28] No space left on device; the collective" in str(lost)
    assert time.monotonic() - began < SILENT_S, "its word is there: nothing to wait for"
    assert [heart.speaks() for heart in hearts] == [False, True, False], "the first of those that failed"
    hearts[0].stop()
    again = Heart(tmp_path, 1, 3, 100)
    again.start()
    assert [beat.error is None for beat in again.beats()] == [True, False], "a new attempt begins with a new word"
    again.stop()


def test_an_error_that_is_no_collectives_is_left_alone(tmp_path: Path) -> None:
    heart = Heart(tmp_path, 0, 1, 100)
    assert heart.explained(RuntimeError("shapes cannot be multiplied")) is None


def test_a_window_keeps_what_its_record_is_made_of() -> None:
    window = Window()
    window.add(StepResult(2.0, 3.0), waited=0.1)
    window = Window.of(window.state())
    window.add(StepResult(1.0, 0.0, skipped=True), waited=0.2)
    tags = window.tags(global_batch=8, tokens=10)
    assert (tags["train/loss"], tags["train/grad_norm"], tags["health/skipped_steps"]) == (1.5, 3.0, 0.5)
    resumed = Window.of(Window(steps=990).state())
    resumed.started -= 100.0
    resumed.add(StepResult(1.0, 0.0), waited=0.1)
    rate = resumed.tags(global_batch=8, tokens=10)["perf/trajectories_per_second"]
    assert rate == pytest.approx(8 / 100, rel=0.01), "what was trained before the clock ran is not counted"
    assert tags["perf/tokens_per_second"] == pytest.approx(10 * tags["perf/trajectories_per_second"])
    assert 0 < tags["perf/peak_memory_gib"] < 64
    assert dataclasses.replace(Window(), **window.state()).state() == window.state()
