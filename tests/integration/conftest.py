"""A tiny experiment, and commands run as a user runs them: in a process of their own."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from icrl.board import read_records

# A shell without job control starts what ends in & with SIGINT ignored, and children inherit that: the tests that
# press Ctrl-C would wait for ever. The commands themselves keep to the shell's convention: who put one into the
# background that way does not want a Ctrl-C to end it.
signal.signal(signal.SIGINT, signal.default_int_handler)

TINY = """\
name: tiny
environment: {kind: linear_bandit, dim: 2, n_actions: 3, horizon: 10, noise_std: 0.5}
context:
  - {algorithm: linucb, confidence: 1.0}
dataset: {train: 2000, validation: 256, test: 256, actors: 0}
model: {layers: 2, heads: 2, embed_dim: 16, mlp_dim: 32, tokens: merged}
train: {steps: 60, global_batch: 32, checkpoint_every: 8, log_every: 5, validate_every: 20, schedule: {warmup: 5}}
eval: {environments: 40, baselines: [linucb, uniform]}
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several processes of pytest, what starts a Ray runs in one of them, so that no two do at once."""
    for item in items:
        if item.get_closest_marker("ray"):
            item.add_marker(pytest.mark.xdist_group("ray"))


@pytest.fixture(scope="session")
def tiny() -> str:
    """The config of the tiny experiment, as YAML."""
    return TINY


@pytest.fixture
def config(tiny: str, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(tiny)
    return path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A HOME of the test's own: Ray keeps things there."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    return folder


@pytest.fixture
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A disk of the size that the test gives as this fixture's parameter, in the words of mount: `24m`."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={request.param}", "none", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"needs the right to mount a tmpfs (root, or CAP_SYS_ADMIN in a container): {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


class Commands:
    """`python -m <module> ...` from the checkout."""

    def start(self, module: str, *arguments: object) -> subprocess.Popen[str]:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", module, *map(str, arguments)]
        return subprocess.Popen(
            command,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def run(self, module: str, *arguments: object, code: int = 0) -> str:
        """The output of a command that must end with `code`."""
        process = self.start(module, *arguments)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == code, f"exit code {process.returncode}, expected {code}\n{output[-4000:]}"
        return output

    def interrupt(
        self, number: int, when: Callable[[], bool], module: str, *arguments: object, patience: float = 120
    ) -> int | None:
        """Start a command, send it a signal once `when` holds; its exit code, or None if it ended before."""
        process = self.start(module, *arguments)
        deadline = time.monotonic() + patience
        while not when():
            if process.poll() is not None:
                process.communicate()
                return None
            assert time.monotonic() < deadline, "the moment to interrupt never came"
            time.sleep(0.02)
        os.kill(process.pid, number) if number != signal.SIGKILL else process.kill()
        process.communicate(timeout=120)
        return process.returncode


@pytest.fixture(scope="session")
def commands() -> Commands:
    return Commands()


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, commands: Commands) -> Path:
    """A run that was trained for a few steps; copy it before changing it."""
    folder = tmp_path_factory.mktemp("trained")
    path = folder / "tiny.yaml"
    path.write_text(TINY)
    for module in ("data_gen", "train"):
        commands.run(module, path, f"storage.root={folder}", "train.steps=10")
    (run,) = (folder / "runs").iterdir()
    return run


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory, commands: Commands) -> Path:
    """A storage root with the tiny dataset and a run that nothing disturbed; copy it before changing it."""
    root = tmp_path_factory.mktemp("reference")
    config = root / "tiny.yaml"
    config.write_text(TINY)
    commands.run("data_gen", config, f"storage.root={root}")
    output = commands.run("train", config, f"storage.root={root}")
    assert "next: python -m eval" in output.splitlines()[-1]
    return root


def lasting(run: Path) -> list[tuple[int, dict[str, Any]]]:
    """The records of a run without what differs between two runs of one config: times and rates."""
    return [
        (record["step"], {tag: value for tag, value in record["tags"].items() if not tag.startswith("perf/")})
        for record in read_records(run / "metrics.jsonl")
    ]


def series(run: Path) -> dict[str, list[tuple[int, float]]]:
    """The same numbers as TensorBoard reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run))
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith("perf/")]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


@pytest.fixture
def lasting_records() -> Callable[[Path], list[tuple[int, dict[str, Any]]]]:
    return lasting


@pytest.fixture
def event_series() -> Callable[[Path], dict[str, list[tuple[int, float]]]]:
    return series


class Cluster:
    """A Ray cluster of this machine: a head with a dashboard and token authentication, and more nodes on request."""

    def __init__(self, folder: Path) -> None:
        # short: the paths of Ray's sockets must stay under 108 bytes
        self.directory = Path(tempfile.mkdtemp(prefix="icrl-", dir="/tmp"))
        self.home = folder / "head-home"
        self.home.mkdir()
        self.token = folder / "token"
        self.token.touch(mode=0o600)
        self.token.write_text(secrets.token_hex(32))
        self.port, self.dashboard = free_ports(2)
        self.address = f"127.0.0.1:{self.port}"
        self.url = f"http://127.0.0.1:{self.dashboard}"

    def start(self, cpus: int) -> None:
        agent, client = free_ports(2)
        self._ray(
            "--head", f"--port={self.port}", f"--dashboard-port={self.dashboard}", f"--temp-dir={self.directory}",
            f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}", f"--num-cpus={cpus}",
        )  # fmt: skip

    @property
    def environment(self) -> dict[str, str]:
        """What a command needs to talk to it."""
        return {"HOME": str(self.home), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token)}

    def add_node(self, cpus: int) -> psutil.Process:
        """One more node; its raylet."""
        before = {raylet.pid for raylet in self.raylets()}
        self._ray(f"--address={self.address}", f"--num-cpus={cpus}")
        (raylet,) = [raylet for raylet in self.raylets() if raylet.pid not in before]
        return raylet

    def cut_power(self, raylet: psutil.Process) -> None:
        """Kill a node: its raylet and everything below it. The head learns of it when it misses its heartbeats."""
        kill([raylet, *raylet.children(recursive=True)])

    def retire(self, raylet: psutil.Process) -> None:
        """End a node in order: it takes its leave of the head. Nothing, if it is gone."""
        with contextlib.suppress(psutil.NoSuchProcess):
            below = raylet.children(recursive=True)
            raylet.terminate()
            psutil.wait_procs([raylet], timeout=20)
            kill([raylet, *below])

    def _ray(self, *arguments: str) -> None:
        """`ray start`; the entrypoints of jobs find `python` on the PATH that the head was started with."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        command = [
            sys.executable, "-m", "ray.scripts.scripts", "start", *arguments, "--node-ip-address=127.0.0.1",
            "--min-worker-port=0", "--max-worker-port=0", "--object-store-memory=100000000", "--disable-usage-stats",
        ]  # fmt: skip
        environment = os.environ | self.environment | {"PATH": path}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def _daemons(self) -> list[psutil.Process]:
        """What `ray start` left running: everything that names this cluster's directory or its port."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                line = " ".join(process.cmdline())
                if str(self.directory) in line or ("ray.util.client.server" in line and f":{self.port} " in line):
                    found.append(process)
        return found

    def raylets(self) -> list[psutil.Process]:
        """Of all its nodes."""
        return [process for process in self._daemons() if process.name() == "raylet"]

    def end(self) -> None:
        """Kill its processes, and no others."""
        processes = set(self._daemons())
        for daemon in tuple(processes):
            with contextlib.suppress(psutil.NoSuchProcess):
                processes |= set(daemon.children(recursive=True))
        kill(processes)
        shutil.rmtree(self.directory, ignore_errors=True)


def kill(processes: Iterable[psutil.Process]) -> None:
    """SIGKILL, and wait for the ends."""
    processes = list(processes)
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=20)


def free_ports(count: int) -> list[int]:
    """Below the range that the system hands out itself, and outside of Ray's default for its workers."""
    found: list[int] = []
    while len(found) < count:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
    return found


@pytest.fixture
def free_port() -> int:
    return free_ports(1)[0]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One head for the tests of a module."""
    started = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        started.start(cpus=2)
        yield started
    finally:
        started.end()
