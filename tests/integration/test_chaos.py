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
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from data_gen.plan import plan
from data_gen.repair import check
from icrl.config import Config, DatasetConfig, LinearBanditConfig, TrainConfig, dump
from icrl.store import SPLITS, dataset_path
from tests.dataset_tree import dataset_tree

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
KILLS = 54
PATIENCE_S = 600

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
    """A config of 3 splits of 8 shards, each half a second of one core's work, and its file."""
    config = Config(
        environment=LinearBanditConfig(dim=32, n_actions=24, horizon=200),
        dataset=DatasetConfig(path=str(path), train=16_384, validation=16_384, test=16_384, actors=actors),
        train=TrainConfig(global_batch=8),
    )
    file = path.with_suffix(".yaml")
    file.write_text(dump(config))
    return config, file


class Chaos:
    """Who may be killed, and what was. Of the four actors two or three go at once, and start again together."""

    def __init__(self, cluster: Any, config: Config, config_file: Path, log: Path) -> None:
        self.cluster = cluster
        self.dataset = dataset_path(config)
        self.shards = plan(config).shards
        self.command = [sys.executable, "-c", DRIVER, str(config_file), cluster.address, str(ROOT)]
        self.log = log
        self.began = time.monotonic()
        self.kills: list[tuple[str, float, int]] = []
        """Who, when, and how many shards were committed then."""
        (self.head,) = cluster.raylets()
        self.starting = ThreadPoolExecutor(1)
        self.second: Future[psutil.Process] = self.starting.submit(self.join)
        self.driver = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(self.command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)

    def join(self) -> psutil.Process:
        """The second node; a busy head may be too slow for it at first."""
        for _ in range(4):
            with contextlib.suppress(AssertionError):
                return self.cluster.add_node(cpus=2)
        return self.cluster.add_node(cpus=2)

    @property
    def committed(self) -> int:
        return sum(1 for split in SPLITS for _ in (self.dataset / "_commits" / split).glob("*.json"))

    def actors(self, *, at_work: bool = False) -> list[psutil.Process]:
        """Of both nodes; `at_work`: in the middle of a shard."""
        found = []
        for raylet in (self.head, *([self.second.result()] if self.second.done() else [])):
            with contextlib.suppress(psutil.Error):
                for worker in raylet.children(recursive=True):
                    with contextlib.suppress(psutil.Error):
                        title = "TrajectoryActor.write" if at_work else "TrajectoryActor"
                        if title in " ".join(worker.cmdline()):
                            found.append(worker)
        return sorted(found, key=lambda process: process.pid)

    def wait_for(self, shards: int) -> None:
        """Let the work come so far, or a minute pass: kills spread over all of it, and none is too late."""
        deadline = time.monotonic() + 60
        while self.committed < shards and time.monotonic() < deadline and self.driver.poll() is None:
            time.sleep(0.05)

    def wait_for_work(self) -> None:
        deadline = time.monotonic() + 30
        while not self.actors(at_work=True) and time.monotonic() < deadline and self.driver.poll() is None:
            time.sleep(0.1)

    def kill(self, victim: str, rng: random.Random) -> None:
        """kill -9, and what one does after it: start the driver again, add a node; Ray itself starts actors again."""
        at = (time.monotonic() - self.began, self.committed)
        match victim:
            case "driver":
                os.kill(self.driver.pid, signal.SIGKILL)
                assert self.driver.wait(20) == -signal.SIGKILL
                self.driver = self.start()
            case "node" if self.second.done():
                self.cluster.cut_power(self.second.result())
                self.second = self.starting.submit(self.join)
            case _:
                actors = self.actors()
                for actor in rng.sample(actors, min(rng.randint(2, 3), len(actors))):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        actor.kill()
                        self.kills.append(("actor", *at))
                return
        self.kills.append((victim, *at))

    def end(self) -> None:
        if self.driver.poll() is None:
            self.driver.kill()
            self.driver.wait(20)
        self.cluster.retire(self.second.result())
        self.starting.shutdown()


def victims(rng: random.Random) -> Iterator[str]:
    """In each ten the actors seven times, the driver twice and a node once, in random order."""
    while True:
        deck = ["actors"] * 7 + ["driver"] * 2 + ["node"]
        rng.shuffle(deck)
        yield from deck


def test_whoever_is_killed_the_bytes_are_those_of_an_undisturbed_run(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    _, quiet_file = written(tmp_path / "quiet", actors=0)
    config, chaos_file = written(tmp_path / "chaos", actors=4)
    quiet = subprocess.Popen([sys.executable, "-m", "data_gen", str(quiet_file)], cwd=ROOT)
    chaos = Chaos(cluster, config, chaos_file, tmp_path / "log")
    rng = random.Random(20)
    try:
        deck = victims(rng)
        while len(chaos.kills) < KILLS and chaos.driver.poll() is None:
            share = len(chaos.kills) / KILLS
            chaos.wait_for(round(0.7 * share * chaos.shards))
            # some may fall into a start, and none waits while the work is ahead of the kills
            if rng.random() < 0.85 and chaos.committed <= share * chaos.shards:
                chaos.wait_for_work()
                time.sleep(rng.uniform(0, 0.6))
            if chaos.driver.poll() is None:
                chaos.kill(next(deck), rng)
        assert chaos.driver.wait(PATIENCE_S) == 0, chaos.log.read_text()[-3000:]
        seconds = time.monotonic() - chaos.began
        assert quiet.wait(PATIENCE_S) == 0
    finally:
        print(*(f"{at:6.1f} s, {shards:2} shards: {victim}" for victim, at, shards in chaos.kills), sep="\n")
        if quiet.poll() is None:
            quiet.kill()
            quiet.wait(20)
        chaos.end()
    count = Counter(victim for victim, _, _ in chaos.kills)
    print(f"{dict(count)} in {seconds:.0f} s")
    assert count.total() >= 50
    assert count["node"] >= 2
    assert count["driver"] >= 3
    assert chaos.kills[-1][2] < chaos.shards, "all kills fell before the end"
    assert dataset_tree(tmp_path / "chaos") == dataset_tree(tmp_path / "quiet")
    found = check(tmp_path / "chaos", sample=1)
    assert (found.faults, found.partials, found.shards) == ((), 0, chaos.shards)
