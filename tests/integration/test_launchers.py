"""DeepSpeed's launcher, on one machine and as two that start by themselves, trains as the command alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow


def only_run(root: Path) -> Path:
    (run,) = (root / "runs").iterdir()
    return run


@pytest.mark.parametrize("machines", [1, 2])
def test_deepspeed_trains_as_the_command_itself(
    machines: int, config: Path, tmp_path: Path, free_port: int, commands: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two machines are two entries of a hostfile here, with one process each, that meet at 127.0.0.1."""
    own, launched = tmp_path / "own", tmp_path / "launched"
    commands.run("train", config, f"storage.root={own}", "dataset.source=virtual", "train.workers=2")
    meeting = ["--master_addr", "127.0.0.1", "--master_port", str(free_port), "--no_local_rank", "--module"]
    hosts = tmp_path / "hosts"
    hosts.write_text("node-a slots=1\nnode-b slots=1\n")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    started = [
        commands.start(
            "deepspeed.launcher.runner",  # what the command `deepspeed` calls
            *(["--num_accelerators", "2"] if machines == 1 else ["--hostfile", hosts, "--no_ssh", "--node_rank", rank]),
            *meeting,
            "train",
            *(config, f"storage.root={launched}", "dataset.source=virtual"),
        )
        for rank in range(machines)
    ]
    outputs = [launcher.communicate(timeout=300)[0] for launcher in started]
    assert [launcher.returncode for launcher in started] == [0] * machines, outputs
    (last,) = [line for output in outputs for line in output.splitlines() if line.startswith("next: ")]
    assert last == f"next: python -m eval {only_run(launched)}", "one rank speaks"
    assert (only_run(launched) / "model.safetensors").read_bytes() == (only_run(own) / "model.safetensors").read_bytes()
