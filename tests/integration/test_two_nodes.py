"""A Ray of two nodes: both generate, both train, and a node that dies during generation loses nothing."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from icrl.board import read_records
from icrl.store import SPLITS

pytestmark = [pytest.mark.ray, pytest.mark.slow]


SLOW_TO_MAKE = (
    "environment.dim=24",
    "environment.n_actions=16",
    "environment.horizon=40",
    "dataset.train=600000",
    "dataset.test=0",
)
"""Some 17 s of one core: long enough for both nodes to join in, and to be hit in the middle."""


def tree(dataset: Path) -> dict[str, bytes]:
    """Every file that a dataset's recipe decides: all but the lock and the groups' provenance."""
    files = {str(path.relative_to(dataset)): path.read_bytes() for path in sorted(dataset.rglob("*")) if path.is_file()}
    files.pop(".lock")
    for split in SPLITS:
        group = json.loads(files[f"{split}.zarr/zarr.json"])
        del group["attributes"]["provenance"]
        files[f"{split}.zarr/zarr.json"] = json.dumps(group).encode()
    return files


def only(folder: Path) -> Path:
    (entry,) = folder.iterdir()
    return entry


def writing(raylet: psutil.Process) -> bool:
    """Whether a worker of this node is in the middle of a shard."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return any("Actor.write" in " ".join(worker.cmdline()) for worker in raylet.children(recursive=True))
    return False


@pytest.fixture
def second(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[psutil.Process]:
    """The raylet of a second node, beside the head's; it ends with the test."""
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    raylet = cluster.add_node(cpus=2)
    yield raylet
    cluster.retire(raylet)


@pytest.fixture
def whole(config: Path, tmp_path: Path, commands: Any) -> Any:
    """A dataset by one process, with the same arguments."""

    def make(*arguments: str) -> dict[str, bytes]:
        root = tmp_path / "plain"
        commands.run("data_gen", config, f"storage.root={root}", "dataset.actors=0", *arguments)
        return tree(only(root / "data"))

    return make


def test_both_nodes_generate_and_each_trains_one_worker(
    cluster: Any, second: psutil.Process, config: Path, tmp_path: Path, commands: Any, whole: Any
) -> None:
    root = tmp_path / "shared"
    arguments = [*SLOW_TO_MAKE, "train.steps=20"]
    commands.run(
        "cluster", "run", config, f"storage.root={root}", "--address", cluster.address, "dataset.actors=4", *arguments
    )
    run = only(root / "runs")
    written = json.loads((run / "logs" / "generation.json").read_text())
    assert len(written["shards_by_node"]) == 2, written
    trained = json.loads((run / "logs" / "training.json").read_text())["node_of_rank"]
    assert sorted(trained) == sorted(written["shards_by_node"]), "one rank on each node"
    assert json.loads((run / "status.json").read_text())["state"] == "done"
    assert tree(only(root / "data")) == whole(*arguments)


def test_a_node_killed_during_generation_loses_nothing(
    cluster: Any, second: psutil.Process, config: Path, tmp_path: Path, commands: Any, whole: Any
) -> None:
    root = tmp_path / "shared"
    arguments = [*SLOW_TO_MAKE, "train.steps=6"]
    process = commands.start(
        "cluster", "run", config, f"storage.root={root}", "--address", cluster.address, "dataset.actors=4", *arguments
    )

    def shards() -> int:
        return len(list(root.glob("data/*/_commits/train/*.json")))

    deadline = time.monotonic() + 200
    while shards() < 4 or not writing(second):
        assert process.poll() is None, process.communicate()[0][-3000:]
        assert time.monotonic() < deadline, "generation never began"
        time.sleep(0.02)
    before = shards()
    cluster.cut_power(second)
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output[-3000:]
    written = json.loads((only(root / "runs") / "logs" / "generation.json").read_text())
    total = shards()
    assert before < total, "the kill fell in the middle"
    assert sum(written["shards_by_node"].values()) >= total
    assert tree(only(root / "data")) == whole(*arguments)


def drained(cluster: Any, node: str) -> None:
    """Announce the end of a node, as a provider that takes back a spot instance does."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", cluster.address]
    command += ["--node-id", node, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
    subprocess.run([*command, "--deadline-remaining-seconds", "300"], check=True, timeout=60)


class Training:
    """A training of Ray workers on both nodes, and the same one that nothing disturbed."""

    def __init__(self, cluster: Any, commands: Any, config: Path, folder: Path, workers: int) -> None:
        words = [
            f"train.workers={workers}",
            "dataset.source=virtual",
            "train.steps=1200",
            "train.checkpoint_every=1100",
        ]
        words += ["train.log_every=20", "train.validate_every=400"]
        commands.run("train", config, f"storage.root={folder / 'undisturbed'}", *words)
        self.undisturbed = only(folder / "undisturbed" / "runs")
        self.root = folder / "shared"
        self.command = ("cluster", "run", config, f"storage.root={self.root}", "--address", cluster.address, *words)
        self.process = commands.start(*self.command)

    @property
    def run(self) -> Path:
        return only(self.root / "runs")

    @property
    def nodes(self) -> list[str]:
        """The node of each rank."""
        return list(json.loads((self.run / "logs" / "training.json").read_text())["node_of_rank"])

    def until(self, step: int) -> None:
        """Wait for the record of a step past this one."""
        deadline = time.monotonic() + 200
        metrics = "runs/*/metrics.jsonl"
        while not any(record["step"] > step for path in self.root.glob(metrics) for record in read_records(path)):
            assert self.process.poll() is None, self.process.communicate()[0][-3000:]
            assert time.monotonic() < deadline, "training never came so far"
            time.sleep(0.05)

    def require_undisturbed(self, lasting_records: Any) -> None:
        """Check that weights and records are those of the other one."""
        assert (self.run / "model.safetensors").read_bytes() == (self.undisturbed / "model.safetensors").read_bytes()
        records = [record for record in lasting_records(self.run) if "eval/regret_final" not in record[1]]
        assert records == lasting_records(self.undisturbed)


@pytest.mark.parametrize("workers", [2, 4])
def test_a_node_that_is_taken_away_ends_in_a_checkpoint_and_loses_no_step(
    workers: int,
    cluster: Any,
    second: psutil.Process,
    config: Path,
    tmp_path: Path,
    commands: Any,
    lasting_records: Any,
) -> None:
    """Two workers find room on the node that stays, and go on there; four do not, and the command ends."""
    training = Training(cluster, commands, config, tmp_path, workers)
    training.until(40)
    (away,) = [word.removeprefix("--node_id=") for word in second.cmdline() if word.startswith("--node_id=")]
    (head,) = set(training.nodes) - {away}
    drained(cluster, away)
    output, _ = training.process.communicate(timeout=300)
    run = training.run
    steps = [int(path.name.removeprefix("step-")) for path in (run / "checkpoints").iterdir()]
    if workers == 2:
        assert training.process.returncode == 0, output[-3000:]
        assert training.nodes == [head, head]
    else:
        assert training.process.returncode == 143, output[-3000:]
        assert "a node is being taken away" in output
        assert json.loads((run / "status.json").read_text())["state"] == "stopped"
        assert 40 < min(steps) < 1100, "a checkpoint of its own"
        cluster.retire(second)
        third = cluster.add_node(cpus=2)
        try:
            commands.run(*training.command)
        finally:
            cluster.retire(third)
    training.require_undisturbed(lasting_records)


def test_a_node_that_dies_in_training_costs_the_steps_since_a_checkpoint(
    cluster: Any,
    second: psutil.Process,
    config: Path,
    tmp_path: Path,
    commands: Any,
    lasting_records: Any,
) -> None:
    training = Training(cluster, commands, config, tmp_path, workers=2)
    training.until(40)
    assert len(set(training.nodes)) == 2
    cluster.cut_power(second)
    output, _ = training.process.communicate(timeout=400)
    assert training.process.returncode == 0, output[-3000:]
    assert len(set(training.nodes)) == 1
    training.require_undisturbed(lasting_records)
