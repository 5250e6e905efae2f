"""`python -m cluster submit` and its companions against a real head: own HOME, ports and directory, token on."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster.__main__ import app
from cluster.jobs import Jobs
from cluster.package import Package
from cluster.submit import check_inner, require_absolute

pytestmark = pytest.mark.ray

LONG = 1500
"""Steps that outlast the command that stops them."""
CHECKOUT = Path(__file__).resolve().parents[2]


def only_run(root: Path) -> Path:
    (run,) = (root / "runs").iterdir()
    return run


def weights(root: Path) -> bytes:
    return (only_run(root) / "model.safetensors").read_bytes()


@pytest.fixture
def talking(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The cluster, with what a user of it has in the environment."""
    for name, value in (cluster.environment | {"RAY_API_SERVER_ADDRESS": cluster.url}).items():
        monkeypatch.setenv(name, value)
    return cluster


@pytest.mark.slow
def test_a_job_runs_to_its_end_with_its_results_under_the_root(
    talking: Any, config: Path, tmp_path: Path, commands: Any
) -> None:
    root = tmp_path / "shared"
    output = commands.run("cluster", "submit", "--", "run", config, f"storage.root={root}", "dataset.actors=2")
    run = only_run(root)
    assert (run / "results.json").stat().st_size > 0
    assert json.loads((run / "status.json").read_text())["state"] == "done"
    assert (run / "env.json").exists()
    assert json.loads((run / "env.json").read_text())["commit"], "the package has no history, yet the commit is known"
    job = output.split()[1]
    assert job.startswith("tiny-")
    assert job.endswith("-1")
    assert "transformer " in output, "the log was followed"
    assert f"{job} SUCCEEDED" in output
    assert sorted(path.name for path in root.iterdir()) == ["data", "runs"]

    # the page's commands about jobs, of this job
    expected = {"list": job, "status": str(run), "logs": "transformer ", "stop": "has ended already: SUCCEEDED"}
    for name, *arguments in documented():
        if name in expected:
            shown = commands.run("cluster", name, *(word.replace("demo-02740ccf", job[:-2]) for word in arguments))
            assert expected.pop(name) in shown
    assert not expected

    # a job that fails: its own exit code comes back; here the teacher's regret is a bar out of reach
    failing = [*commands_of(config, root), "eval.expect.teacher_ratio=0.01"]
    output = commands.run("cluster", "submit", "--", *failing, "train.steps=6", code=1)
    assert "FAILED (1)" in output
    # and one that the cluster could never place says so, as a usage error
    output = commands.run("cluster", "submit", "--", *failing, "train.workers=8", "train.threads=2", code=2)
    assert "on this cluster" in output
    assert "FAILED (2)" in output
    assert "Traceback" not in output


def test_the_page_on_clusters_can_be_submitted_and_connected_as_it_stands(talking: Any, commands: Any) -> None:
    submitted = [arguments for name, *arguments in documented() if name == "submit"]
    assert len(submitted) >= 3
    for arguments in submitted:
        assert "--address auto" in refused_or_shown("--dry-run", *arguments, code=0)
    (connecting,) = [arguments for name, *arguments in documented() if name == "run" and "--address" in arguments]
    words = [word.replace("127.0.0.1:6379", talking.address).replace("/mnt/icrl", "/tmp") for word in connecting]
    assert "trajectories    208,192" in commands.run("cluster", "run", *words, "--dry-run")


def documented() -> list[list[str]]:
    """The commands of `docs/clusters.md`, without `python -m cluster`."""
    lines = (CHECKOUT / "docs" / "clusters.md").read_text().splitlines()
    return [shlex.split(line, comments=True)[3:] for line in lines if line.startswith("python -m cluster ")]


def refused_or_shown(*arguments: str, code: int) -> str:
    """What `submit` says of a command without sending it."""
    result = CliRunner().invoke(app, ["submit", *arguments])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.output


def commands_of(config: Path, root: Path) -> list[str]:
    return ["run", str(config), f"storage.root={root}", "dataset.actors=2"]


@pytest.mark.slow
def test_a_stop_in_mid_training_resumes_with_the_next_submit_to_the_same_weights(
    talking: Any, config: Path, tmp_path: Path, commands: Any
) -> None:
    root = tmp_path / "shared"
    seldom = [f"train.checkpoint_every={2 * LONG}", f"train.validate_every={LONG}", "train.workers=1"]
    words = [*commands_of(config, root), f"train.steps={LONG}", *seldom]
    started = commands.run("cluster", "submit", "--no-wait", "--", *words)
    job = started.split()[1]
    again = commands.run("cluster", "submit", "--no-wait", "--", *words)
    assert f"{job} (runs already)" in again, "submitting twice starts no second job"
    deadline = time.monotonic() + 120
    while not any(metrics.read_text().count("\n") > 4 for metrics in root.glob("runs/*/metrics.jsonl")):
        assert time.monotonic() < deadline, commands.run("cluster", "logs", job)
        time.sleep(0.1)

    stopped = commands.run("cluster", "stop", job)
    assert f"{job} STOPPED" in stopped
    status = json.loads((only_run(root) / "status.json").read_text())
    assert status["state"] == "stopped"
    assert 0 < status["step"] < LONG
    assert [path.name for path in (only_run(root) / "checkpoints").iterdir()] == [f"step-{status['step']:08d}"]
    assert "has ended already: STOPPED" in commands.run("cluster", "stop", job)
    commands.run("cluster", "logs", "-f", job, code=143)

    output = commands.run("cluster", "submit", "--", *words)
    assert f"{job[:-1]}2 SUCCEEDED" in output

    plain = tmp_path / "plain"
    commands.run("data_gen", config, f"storage.root={plain}")
    commands.run("train", config, f"storage.root={plain}", *words[4:])
    assert weights(root) == weights(plain)


@pytest.mark.slow
def test_a_stop_during_generation_keeps_the_shards_that_are_done(
    talking: Any, config: Path, tmp_path: Path, commands: Any
) -> None:
    root = tmp_path / "shared"
    size = ["environment.dim=24", "environment.n_actions=16", "environment.horizon=40", "dataset.train=1000000"]
    started = commands.run("cluster", "submit", "--no-wait", "--", *commands_of(config, root), *size, "train.steps=6")
    job = started.split()[1]

    def shards() -> set[Path]:
        return set(root.glob("data/*/_commits/train/*.json"))

    deadline = time.monotonic() + 200
    while len(shards()) < 2:
        assert time.monotonic() < deadline, commands.run("cluster", "logs", job)
        time.sleep(0.05)
    assert f"{job} STOPPED" in commands.run("cluster", "stop", job)
    assert "stopped; the same command resumes" in commands.run("cluster", "logs", job)
    kept = shards()
    assert 2 <= len(kept) < 25
    time.sleep(5)
    assert shards() == kept, "no actor goes on behind the job's back"
    written = {path: path.stat().st_mtime_ns for path in kept}
    commands.run("cluster", "submit", "--", *commands_of(config, root), *size, "train.steps=6")
    assert {path: path.stat().st_mtime_ns for path in kept} == written


@pytest.mark.slow
def test_a_sweep_as_a_job_and_from_a_connected_driver(talking: Any, tmp_path: Path, commands: Any) -> None:
    root = tmp_path / "shared"
    tiny = "environment.dim=2 environment.n_actions=3 environment.horizon=10 dataset.train=2000 dataset.validation=256"
    small = (
        "model.layers=1 model.embed_dim=8 train.steps=20 train.workers=1 train.schedule.warmup=5 eval.environments=40"
    )
    expect = "eval.expect.teacher_ratio=null eval.expect.uniform_ratio=null dataset.test=256"
    words = ["sweep", "configs/demo.yaml", "seed=0,1", *tiny.split(), *small.split(), *expect.split()]
    output = commands.run("cluster", "submit", "--", *words, f"storage.root={root}")
    assert "SUCCEEDED" in output
    (table,) = root.glob("runs/*/table.csv")
    assert len(table.read_text().splitlines()) == 3

    # the same trials, called by a driver that is connected to the cluster: read from where the job left them
    finished = {path: path.stat().st_mtime_ns for path in root.glob("runs/*/trials/*/results.json")}
    assert len(finished) == 2
    connected = ("sweep", *words[1:], f"storage.root={root}", "--address", talking.address)
    commands.run("cluster", *connected)
    assert {path: path.stat().st_mtime_ns for path in root.glob("runs/*/trials/*/results.json")} == finished
    commands.run("cluster", *(word.replace("seed=0,1", "seed=2,3") for word in connected))
    assert len(list(root.glob("runs/*/trials/*/results.json"))) == 4


def test_wrong_token_no_token_and_no_cluster_are_one_message_each(
    talking: Any, tmp_path: Path, commands: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--", "run", CHECKOUT / "configs" / "demo.yaml"]

    def refused(*arguments: object) -> str:
        begun = time.monotonic()
        output: str = commands.run("cluster", *arguments, code=2)
        assert output.startswith("error: ")
        assert len(output.splitlines()) == 1, output
        assert time.monotonic() - begun < 40, "refused within seconds; imports on a busy machine take most of this"
        return output

    wrong = tmp_path / "wrong"
    wrong.write_text("0" * 64)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(wrong))
    output = refused("submit", *words)
    assert "does not take this token" in output
    assert talking.url in output
    assert "does not take this token" in refused("run", words[-1], "--address", talking.address)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    output = refused("list")
    assert "asks for a token" in output
    assert "RAY_AUTH_TOKEN_PATH" in output
    nobody = "127.0.0.1:1"
    assert f"--address http://{nobody}: no Ray cluster answers" in refused("submit", "--address", nobody, *words)
    assert f"--address {nobody}: no Ray cluster answers" in refused("run", words[-1], "--address", nobody)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--", "run", "configs/demo.yaml", "train.stpes=3"], "did you mean train.steps?"),
        (["--", "run", "configs/none.yaml"], "an existing YAML file"),
        (["--", "fly", "configs/demo.yaml"], "begins with run or sweep, got fly"),
        (["--", "run", "configs/demo.yaml", "--dry-run"], "options of submit come before --"),
        (["--address", "http://10.0.0.7:8265", "--", "run", "configs/demo.yaml"], "--allow-plain-http"),
        (["--address", "ray://10.0.0.7:10001", "--", "run", "configs/demo.yaml"], "expected the http(s) address"),
        (["--address", "https://ray.example", "--", "run", "configs/demo.yaml"], "add storage.root=/shared/path"),
        (["--", "run", "runs/x.yaml"], "an existing YAML file"),
        (["--", "sweep", "configs/sweeps/smoke.yaml", "model.layers=0"], "at least 1"),
        (["--name", "No Good", "--", "run", "configs/demo.yaml"], "--name No Good: expected lower-case"),
    ],
)
def test_what_is_refused_before_anything_is_sent(arguments: list[str], expected: str) -> None:
    assert expected in refused_or_shown(*arguments, code=2)


def test_a_sweep_is_submitted_as_a_run_is() -> None:
    sweep = ["sweep", "configs/sweeps/smoke.yaml", "storage.root=/shared"]
    output = refused_or_shown("--dry-run", "--", *sweep, code=0)
    assert "sweep configs/sweeps/smoke.yaml storage.root=/shared --address auto" in output
    assert "/shared/runs/smoke" in output


def test_a_checkout_that_is_too_large_is_refused_with_what_is_large(tmp_path: Path) -> None:
    copy = tmp_path / "checkout"
    package = Package.of()
    for file in package.files:
        (copy / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(package.root / file, copy / file)
    for folder in ("data", "runs", ".git", "scratch/model"):
        (copy / folder).mkdir(parents=True)
        with (copy / folder / "blob").open("wb") as blob:
            blob.truncate(101 * 2**20)
    command = [sys.executable, "-m", "cluster", "submit", "--dry-run"]
    inner = ["--", "run", "configs/demo.yaml"]

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *options, *inner],
            cwd=copy,
            env=os.environ,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    done = run()
    assert done.returncode == 2
    assert "scratch/model/" in done.stderr
    assert "--exclude scratch/model" in done.stderr
    done = run("--exclude", "scratch/model")
    assert done.returncode == 0, done.stderr
    assert f"storage.root={copy}" in done.stdout, "a head on this machine shares the caller's directory"
    assert "configs/demo.yaml" in done.stdout


def test_a_tunnel_is_not_taken_for_a_head_on_this_machine() -> None:
    here, elsewhere = socket.gethostname(), "some-head"
    assert Jobs("http://127.0.0.1:8265", None, frozenset({here})).local
    assert not Jobs("http://127.0.0.1:8265", None, frozenset({elsewhere})).local
    assert not Jobs("http://localhost:8265", None, frozenset({here, elsewhere})).local
    with pytest.raises(ValueError, match=r"storage.root = '\.': .* storage.root=/shared/path"):
        require_absolute(check_inner(["run", "configs/demo.yaml"]), "the head behind a tunnel")


def test_equal_contents_are_equal_packages(tmp_path: Path) -> None:
    package = Package.of()
    names = {file.as_posix() for file in package.files}
    assert {"cluster/submit.py", "configs/demo.yaml", "icrl/config/schema.py"} <= names
    assert not [
        name for name in names if name.startswith((".git/", "data/", "runs/", ".venv/")) or "__pycache__" in name
    ]
    first = package.write(tmp_path / "first.zip", {"submitted.yaml": "name: x\n"})
    second = package.write(tmp_path / "second.zip", {"submitted.yaml": "name: x\n"})
    assert first.read_bytes() == second.read_bytes()
