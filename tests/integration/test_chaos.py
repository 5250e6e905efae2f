"""kill -9 of random actors, of the driver and of a whole Ray node, fifty times and more: not a byte differs.

Which process is killed and how long the test waits before are drawn from a seed; when it falls within the work is not.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from data_gen.plan import plan
from data_gen.repair import check
from icrl.config import Config, DatasetConfig, LinearBanditConfig, TrainConfig, dump
from icrl.store import SPLITS
from tests.dataset_tree import dataset_tree

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
KILLS = 56
NODE_KILLS = 3
PATIENCE_S = 400

DRIVER = """
import sys
from data_gen.connected_ray import connected
from data_gen.generate import generate
from icrl.config import load
with connected(sys.argv[2], {"env_vars": {"PYTHONPATH": sys.argv[3]}}):
    generate(load(sys.argv[1]).config)
"""


@pytest.fixture(scope="module", autouse=True)
def _brisk() -> Iterator[None]:
    """Ray's workers would run at niceness 15, and hardly ever where other work is done."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")
        yield


def written(path: Path, actors: int) -> tuple[Config, Path]:
    """A config of 3 splits of 15 shards, each a second of one core's work, and its file."""
    config = Config(
        environment=LinearBanditConfig(dim=32, n_actions=24, horizon=300),
        dataset=DatasetConfig(path=str(path), train=30_000, validation=30_000, test=29_000, actors=actors),
        train=TrainConfig(global_batch=8),
    )
    file = path.with_suffix(".yaml")
    file.write_text(dump(config))
    return config, file


def committed(dataset: Path) -> int:
    return sum(1 for split in SPLITS for _ in (dataset / "_commits" / split).glob("*.json"))


class Chaos:
    """Who may be killed, and what was."""

    def __init__(self, cluster: Any, config_file: Path, log: Path) -> None:
        self.cluster = cluster
        self.command = [sys.executable, "-c", DRIVER, str(config_file), cluster.address, str(ROOT)]
        self.log = log
        self.kills: Counter[str] = Counter()
        self.second = cluster.add_node(cpus=2)
        self.driver = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(self.command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)

    def actors(self, *, at_work: bool = False) -> list[psutil.Process]:
        """Of both nodes; `at_work`: in the middle of a shard."""
        found = []
        for raylet in self.cluster.raylets():
            with contextlib.suppress(psutil.Error):
                for worker in raylet.children(recursive=True):
                    with contextlib.suppress(psutil.Error):
                        title = "TrajectoryActor.write" if at_work else "TrajectoryActor"
                        if title in " ".join(worker.cmdline()):
                            found.append(worker)
        return sorted(found, key=lambda process: process.pid)

    def kill_actor(self, rng: random.Random) -> None:
        if victims := self.actors():
            with contextlib.suppress(psutil.NoSuchProcess):
                rng.choice(victims).kill()
                self.kills["actor"] += 1

    def kill_driver(self) -> None:
        os.kill(self.driver.pid, signal.SIGKILL)
        assert self.driver.wait(20) == -signal.SIGKILL
        self.kills["driver"] += 1
        self.driver = self.start()

    def kill_node(self) -> None:
        self.cluster.cut_power(self.second)
        self.kills["node"] += 1
        self.second = self.cluster.add_node(cpus=2)


def test_whoever_is_killed_the_bytes_are_those_of_an_undisturbed_run(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    _, quiet_file = written(tmp_path / "quiet", actors=0)
    config, chaos_file = written(tmp_path / "chaos", actors=4)
    total = plan(config).shards
    began = time.monotonic()
    quiet = subprocess.Popen([sys.executable, "-m", "data_gen", str(quiet_file)], cwd=ROOT)
    chaos = Chaos(cluster, chaos_file, tmp_path / "log")
    rng = random.Random(20)
    try:
        while chaos.driver.poll() is None:
            assert time.monotonic() - began < PATIENCE_S, (chaos.kills, committed(tmp_path / "chaos"))
            count = chaos.kills.total()
            if count >= KILLS:
                time.sleep(0.1)
                continue
            victim = rng.choices(["actor", "driver", "node"], [0.78, 0.16, 0.06])[0]
            wait = rng.uniform(0, 1.2)
            share = committed(tmp_path / "chaos") / total
            # kills keep ahead of the work, so that it is not done before they are
            time.sleep(wait if count > KILLS * share else 0.1 * wait)
            if victim != "driver" or rng.random() < 0.7:  # the others of the driver's fall into its start
                deadline = time.monotonic() + 30
                while not chaos.actors(at_work=True) and time.monotonic() < deadline and chaos.driver.poll() is None:
                    time.sleep(0.05)
                time.sleep(rng.uniform(0, 0.5))
            if chaos.driver.poll() is not None:
                break
            due = chaos.kills["node"] < NODE_KILLS * (count + 1) / KILLS
            match "node" if due and count % 12 == 9 else victim:
                case "driver":
                    chaos.kill_driver()
                case "node" if chaos.kills["node"] < NODE_KILLS:
                    chaos.kill_node()
                case _:
                    chaos.kill_actor(rng)
        assert chaos.driver.wait(10) == 0, (tmp_path / "log").read_text()[-3000:]
        disturbed = time.monotonic() - began
        assert quiet.wait(200) == 0
    finally:
        for process in (chaos.driver, quiet):
            if process.poll() is None:
                process.kill()
        cluster.retire(chaos.second)
    print(f"\n{dict(chaos.kills)} over {disturbed:.0f} s, {total} shards")
    assert chaos.kills.total() >= 50
    assert chaos.kills["node"] >= 2
    assert chaos.kills["driver"] >= 4
    assert chaos.kills["actor"] >= 30
    assert dataset_tree(tmp_path / "chaos") == dataset_tree(tmp_path / "quiet")
    found = check(tmp_path / "chaos", sample=1)
    assert (found.faults, found.partials, found.shards) == ((), 0, total)
