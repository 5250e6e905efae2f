"""The event file of a run: hparams with an outcome, the masked config, images; and all of it again once reopened."""

from __future__ import annotations

import json
import resource
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from cluster.sweep_board import markdown, write_sweep_board
from icrl.board import Board, choose_hparams, event_files, read_records, recorded_outcome, settle
from icrl.config import load
from icrl.hparams import short_names
from icrl.run_dir import RunDirectory


def new_run(root: Path, *overrides: str) -> RunDirectory:
    return RunDirectory.open(load("configs/demo.yaml", [f"storage.root={root}", *overrides]))


def opened(run: RunDirectory) -> Board:
    return Board(run, keep=lambda record: True)


def events(path: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(path))
    accumulator.Reload()
    return accumulator


def hparams(run: RunDirectory) -> tuple[dict[str, Any], list[str], list[str]]:
    """The values, the columns of values and the columns of metrics, as TensorBoard's own plugin parses them."""
    content = events(run.path).summary_metadata
    values = metadata.parse_session_start_info_plugin_data(
        content[metadata.SESSION_START_INFO_TAG].plugin_data.content
    ).hparams
    experiment = metadata.parse_experiment_plugin_data(content[metadata.EXPERIMENT_TAG].plugin_data.content)
    read = {name: getattr(value, value.WhichOneof("kind")) for name, value in values.items()}
    return read, [i.name for i in experiment.hparam_infos], [i.name.tag for i in experiment.metric_infos]


def png(path: Path, shade: int = 0) -> Path:
    """A grey PNG of 3 x 2 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (b"\0" + bytes([shade] * 3)) * 2
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 3, 2, 8, 0, 0, 0, 0))
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    return path


def test_hparams_are_a_handful_of_the_config_with_the_metrics_beside_them(tmp_path: Path) -> None:
    run = new_run(tmp_path, "seed=7")
    opened(run).close()
    values, columns, metrics = hparams(run)
    assert values == {
        "layers": 4, "heads": 4, "embed_dim": 32, "mlp_dim": 128, "attention": "relu", "tokens": "merged", "lr": 0.003,
        "global_batch": 128, "seed": 7,
    }  # fmt: skip
    names = ["layers", "heads", "embed_dim", "mlp_dim", "attention", "tokens", "lr", "global_batch", "seed"]
    assert columns == names
    assert metrics == ["eval/regret_final", "eval/teacher_ratio", "train/validation_loss"]


def test_a_sweep_shows_only_what_it_varies_and_a_reopened_board_does_too(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    choose_hparams(run, {"model.embed_dim": 16, "train.optimizer.lr": 1e-3, "context": [{"algorithm": "linucb"}]})
    for _ in range(2):
        opened(run).close()
        assert hparams(run)[0] == {"embed_dim": 16, "lr": 1e-3, "context": '[{"algorithm": "linucb"}]'}
    assert len(event_files(run.path)) == 1


def test_short_names_tell_apart() -> None:
    keys = ["seed", "train.seed", "dataset.seed", "model.embed_dim"]
    assert list(short_names(keys).values()) == ["seed", "train.seed", "dataset.seed", "embed_dim"]


@pytest.mark.parametrize(
    ("state", "outcome"),
    [("trained", "SUCCESS"), ("done", "SUCCESS"), ("failed", "FAILURE"), ("diverged", "FAILURE"), ("stopped", None)],
)
def test_a_closed_board_has_the_outcome_of_the_run(tmp_path: Path, state: Any, outcome: str | None) -> None:
    run = new_run(tmp_path)
    board = opened(run)
    run.set_status(state)
    board.close()
    assert recorded_outcome(run) == outcome
    assert settle(run) == outcome


def test_a_crashed_run_is_closed_by_who_finds_it_and_open_again_once_resumed(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    run.set_status("training", step=0)
    board = opened(run)
    board.scalars(10, {"train/loss": 1.0})
    board.close()  # as a kill leaves it: no outcome
    assert recorded_outcome(run) is None
    with run.lock():
        assert settle(run) is None, "somebody works on it"
    with run.training_lock():
        assert settle(run) is None, "somebody trains it whose command is gone"
    assert settle(run) == "FAILURE"
    assert recorded_outcome(run) == "FAILURE"
    assert [event.value for event in events(run.path).Scalars("train/loss")] == [1.0]
    modified = [path.stat().st_mtime_ns for path in event_files(run.path)]
    assert settle(run) == "FAILURE"
    assert [path.stat().st_mtime_ns for path in event_files(run.path)] == modified, "closed once"

    board = opened(run)
    assert recorded_outcome(run) is None
    run.set_status("trained", step=20)
    board.close()
    assert recorded_outcome(run) == "SUCCESS"


def test_a_failure_after_training_replaces_the_success(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    run.set_status("trained")
    opened(run).close()
    run.set_status("failed", error="evaluation")
    assert settle(run) == "FAILURE"
    assert recorded_outcome(run) == "FAILURE"


def test_images_survive_a_reopened_board_byte_for_byte(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    file = png(run.figures / "regret.png")
    board = opened(run)
    board.scalars(20, {"eval/regret_final": 3.0}, {"eval/regret_figure": file})
    board.close()
    opened(run).close()
    (image,) = events(run.path).Images("eval/regret_figure")
    assert (image.step, image.width, image.height, image.encoded_image_string) == (20, 3, 2, file.read_bytes())


def test_a_record_from_elsewhere_shows_no_file_but_pictures_of_its_run(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    secret, picture = tmp_path / "id_ed25519", png(tmp_path / "other.png")
    secret.write_text("correct-horse " * 9)
    (run.path / "text.png").write_text("correct-horse " * 9)
    (run.path / "link.png").symlink_to(picture)
    png(run.figures / "ours.png")
    (run.path / "short.png").write_bytes(picture.read_bytes()[:12])
    names = (str(secret), str(picture), "../../id_ed25519", "../../other.png", "text.png", "link.png", "short.png")
    images = {f"eval/{number}": name for number, name in enumerate(names)} | {"eval/ours": "figures/ours.png"}
    run.metrics.write_text(json.dumps({"step": 1, "time": 0.0, "tags": {}, "images": images}) + "\n")
    opened(run).close()
    assert events(run.path).Tags()["images"] == ["eval/ours"]
    assert b"correct-horse" not in b"".join(path.read_bytes() for path in event_files(run.path))


def test_the_config_on_the_board_is_masked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ICRL_STORE_TOKEN", "correct-horse")
    run = new_run(tmp_path / "correct-horse")
    opened(run).close()
    content = b"".join(path.read_bytes() for path in event_files(run.path))
    assert b"embed_dim: 32" in content
    assert b"correct-horse" not in content


def rows() -> list[dict[str, object]]:
    columns = (
        "trial",
        "model.embed_dim",
        "state",
        "step",
        "parameters/total",
        "eval/regret_final",
        "error",
        "directory",
    )
    values = (
        (0, 16, "done", 1200, 12345, 3.14159, None, "trials/0"),
        (1, 32, "failed", None, 23456, float("nan"), "a|b\nc", "trials/1"),
        (2, 64, "waiting", None, None, None, None, "trials/2"),
    )
    return [dict(zip(columns, row, strict=True)) for row in values]


def test_the_table_of_a_sweep_is_markdown() -> None:
    assert markdown(rows()).splitlines() == [
        "| trial | embed_dim | state | step | parameters | regret_final |",
        "| --- | --- | --- | --- | --- | --- |",
        "| 0 | 16 | done | 1,200 | 12,345 | 3.142 |",
        "| 1 | 32 | failed | - | 23,456 | - |",
        "| 2 | 64 | waiting | - | - | - |",
        "",
        "- trial 1: a\\|b c",
    ]


def test_a_sweep_has_one_run_that_is_refreshed_and_closes_the_boards_of_dead_trials(tmp_path: Path) -> None:
    dead = new_run(tmp_path, "run.dir=trials/1")
    opened(dead).close()
    dead.set_status("failed")
    done = new_run(tmp_path, "run.dir=trials/0", "seed=1")
    done.set_status("done")
    opened(done).close()
    write_sweep_board(tmp_path, rows(), None)
    assert recorded_outcome(dead) == "FAILURE"
    figure = png(tmp_path / "figures" / "capacity.png", 200)
    write_sweep_board(tmp_path, rows(), figure)
    assert len(event_files(tmp_path / "sweep")) == 1
    found = events(tmp_path / "sweep")
    assert found.Images("eval/capacity_figure")[0].encoded_image_string == figure.read_bytes()
    (table,) = found.Tensors("eval/trials")
    assert table.step == 2
    assert table.tensor_proto.string_val[0].decode().startswith("2 of 3 trials have ended\n\n| trial |")


def test_a_disk_that_refuses_a_record_is_named_and_what_was_recorded_stays(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    board = opened(run)
    board.scalars(1, {"train/loss": 0.5})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (run.metrics.stat().st_size + 9, hard))
    try:
        with pytest.raises(OSError, match=f"File too large: '{run.metrics}'"):
            board.scalars(2, {"train/loss": 0.4})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    board.close()
    assert [record["step"] for record in read_records(run.metrics)] == [1]
    opened(run).close()
    assert run.metrics.read_bytes().count(b"\n") == 1, "the torn record is gone"


def test_a_writer_of_events_that_has_ended_is_told_and_not_waited_for(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    board = opened(run)
    board._writer.file_writer.event_writer._worker.stop()  # what a full disk does to it
    with pytest.raises(OSError, match=f"TensorBoard's events cannot be written: '{run.path}'"):
        board.scalars(1, {"train/loss": 0.5})
    board.close()
