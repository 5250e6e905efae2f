"""`python -m cluster board` starts a real TensorBoard on 127.0.0.1; what it shows is read back through its HTTP API."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.sweep_board import write_sweep_board
from eval import figures
from icrl.board import Board, choose_hparams
from icrl.cli import TERMINATED
from icrl.config import load
from icrl.run_dir import RunDirectory
from tests.board_page import board, until


def trial(root: Path, number: int, embed_dim: int, state: Any, *, end: bool = True) -> tuple[RunDirectory, Board]:
    name = f"runs/capacity/trials/{number:04d}-{number:08x}"
    overrides = [f"storage.root={root}", f"run.dir={name}", f"model.embed_dim={embed_dim}"]
    run = RunDirectory.open(load("configs/demo.yaml", overrides))
    choose_hparams(run, {"model.embed_dim": embed_dim, "train.seed": number})
    run.set_status("training", step=0)
    writer = Board(run, keep=lambda record: True)
    for step in (10, 20):
        writer.scalars(step, {"train/loss": 2 / step, "perf/trajectories_per_second": 9.0, "data/epoch": 0.1})
    writer.scalars(20, {"train/validation_loss": 1 + 1 / embed_dim, "health/grad": float("nan")})
    if end:
        if state == "done":
            writer.scalars(
                20, {"eval/regret_final": 5.0, "theory/bound": 1.0}, {"eval/regret_figure": picture(run, number)}
            )
        run.set_status(state, step=20)
        writer.close()
    return run, writer


def picture(run: RunDirectory, number: int) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2, 1))
    figure.add_subplot().plot([0, number])
    run.figures.mkdir(exist_ok=True)
    path = run.figures / f"{figures.STEM}.png"
    figure.savefig(path)
    return path


def test_the_board_of_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ICRL_HUB_TOKEN", "correct-horse")
    root = tmp_path / "correct-horse"
    sweep = root / "runs" / "capacity"
    done, _ = trial(root, 0, 16, "done")
    trial(root, 1, 32, "diverged")
    trial(root, 2, 64, "training")  # its process is gone: the board command closes it
    working, writer = trial(root, 3, 128, None, end=False)
    rows = [{"trial": 0, "model.embed_dim": 16, "state": "waiting", "step": 20, "directory": "trials/0000-00000000"}]
    write_sweep_board(sweep, rows, done.figures / "regret.png")
    names = [f"{i:04d} embed_dim={dim} seed={i}" for i, dim in enumerate((16, 32, 64, 128))]

    with working.lock(), board(sweep, "--port", 0) as (page, process):
        until(lambda: set(page.json("runs")) == {*names, "sweep"})
        until(lambda: len(page.sessions()) == 4)
        tags = page.json("plugin/scalars/tags")
        assert set(tags[names[0]]) == {
            "train/loss", "perf/trajectories_per_second", "data/epoch", "train/validation_loss", "health/nonfinite",
            "eval/regret_final", "theory/bound",
        }  # fmt: skip
        loss = page.json("plugin/scalars/scalars", run=names[0], tag="train/loss")
        assert [(step, round(value, 6)) for _, step, value in loss] == [(10, 0.2), (20, 0.1)]

        experiment = page.json("plugin/hparams/experiment", {"experimentName": ""})
        assert [info["name"] for info in experiment["hparamInfos"]] == ["embed_dim", "seed"], "only what varies"
        assert {info["name"]["tag"] for info in experiment["metricInfos"]} == {
            "eval/regret_final", "eval/teacher_ratio", "train/validation_loss",
        }  # fmt: skip
        sessions = page.sessions()
        assert sessions[names[0]]["hparams"] == {"embed_dim": 16, "seed": 0}
        assert sessions[names[0]]["metrics"]["eval/regret_final"] == 5.0
        states = {name: sessions[name]["status"] for name in names}
        assert states == dict(
            zip(names, ["STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_FAILURE", "STATUS_UNKNOWN"], strict=True)
        )

        for run, tag in ((names[0], "eval/regret_figure"), ("sweep", "eval/capacity_figure")):
            (image,) = page.json("plugin/images/images", run=run, tag=tag, sample="0")
            shown = page.get("plugin/images/individualImage?" + image["query"])
            assert shown == (done.figures / "regret.png").read_bytes(), "the file as it is"
        (config,) = page.json("plugin/text/text", run=names[0], tag="resolved_config")
        assert "embed_dim: 16" in config["text"]
        assert "correct-horse" not in config["text"]
        (table,) = page.json("plugin/text/text", run="sweep", tag="eval/trials")
        assert "<table>" in table["text"]

        # while the page is open: a trial ends, another begins, the sweep's table is renewed
        working.set_status("trained", step=30)
        writer.scalars(30, {"train/loss": 0.05})
        writer.close()
        trial(root, 4, 256, "done")
        write_sweep_board(sweep, [rows[0] | {"state": "done"}], None)
        until(lambda: page.sessions()[names[3]]["status"] == "STATUS_SUCCESS")
        until(lambda: "0004 embed_dim=256 seed=4" in page.json("runs"))
        until(lambda: "1 of 1 trials" in page.json("plugin/text/text", run="sweep", tag="eval/trials")[-1]["text"])

        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
        assert output.endswith("ended\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_remote_board_runs_tensorboard_there_for_as_long_as_the_connection_lasts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    trial(tmp_path, 0, 16, "done")
    ssh = tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    # stands for the other machine, which here has the same ports: runs the command that ssh would hand over
    ssh.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/arguments\nfor last; do :; done\nexec sh -c "$last"\n')
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{ssh.parent}:{Path('/usr/bin')}:/bin")
    options = ("--address", "http://head:8265", "--ssh", "me@head", "--python", sys.executable, "--port", 0)
    with board(tmp_path / "runs", *options) as (page, process):

        def answers() -> bool:
            try:
                return page.json("runs") == ["capacity/trials/0000-00000000"]
            except OSError:
                return False

        until(answers)
        arguments = (tmp_path / "arguments").read_text().splitlines()
        assert arguments[:3] == ["-tt", "-o", "ExitOnForwardFailure=yes"]
        assert arguments[5] == "me@head"
        forward = arguments[4].split(":")
        assert forward[:2] == forward[2:]
        if number == signal.SIGINT:  # a Ctrl-C at the terminal reaches both
            os.killpg(process.pid, signal.SIGINT)
        else:
            process.terminate()
        process.communicate(timeout=120)
        assert process.returncode == (0 if number == signal.SIGINT else TERMINATED)
        until(lambda: not answers())
