"""Runs in an object store: a real S3 server, machines that vanish with their disk, two that want the same run."""

import json
import os
import secrets
import shutil
import signal
import time
from pathlib import Path

import obstore
import pytest
import torch
from obstore.store import S3Store
from typer.testing import CliRunner

import icrl.store.lease
from cluster.__main__ import app as cluster_app
from icrl.config import load
from icrl.mirror import LOCK, Mirror, _belongs, require_fits, working, working_on
from icrl.run_dir import RunConflictError, RunDirectory, default_path
from icrl.store.lease import LeaseLostError, leased, require
from icrl.store.objects import ObjectPath
from tests.s3_server import BUCKET, environment, make_folder, serving
from train import checkpoints
from train.launch import check


@pytest.fixture(scope="module")
def server():
    with serving() as port:
        yield port


@pytest.fixture
def url(server, monkeypatch):
    """Where nothing lies yet; this process, and what it starts, are clients of the server."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in environment(server).items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/runs/{secrets.token_hex(4)}"


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(icrl.store.lease, "RENEW_S", 0.1)
    monkeypatch.setattr(icrl.store.lease, "EXPIRES_S", 1.0)
    monkeypatch.setattr(icrl.store.lease, "_LOOK_S", 0.3)


@pytest.fixture
def machine(config, tmp_path, url):
    """The experiment as a machine with a disk of its own has it."""

    def machine(name, *words):
        return load(config, [f"storage.root={tmp_path / name}", f"run.dir={url}", *words])

    return machine


def save(run, config, step, keep=2):
    """A checkpoint as the trainer's writer makes it."""
    run.metrics.write_text("".join(json.dumps({"step": k, "time": 0.0, "tags": {}}) + "\n" for k in range(step)))
    tensors = {"weight/a": torch.full((100,), float(step))}
    checkpoints.save(run.checkpoints, step, tensors, {"step": step}, model=checkpoints.described(config), keep=keep)
    run.set_status("training", step=step)
    Mirror.of(run).push()


def content(path):
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in path.rglob("*")
        if file.is_file() and not file.name.startswith(".")
    }


def begin(loaded, *steps):
    """A session that trains, so to speak; what its mirror then holds."""
    with working(loaded.config):
        run = RunDirectory.open(loaded)
        for step in steps:
            save(run, loaded.config, step)
    return run


def test_what_was_committed_outlives_the_disk(machine, url):
    loaded = machine("first")
    run = begin(loaded, 10, 20, 30)
    before = content(run.path)
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["step-00000020", "step-00000030"]
    there = ObjectPath.parse(url).walk()
    assert there.keys() == {*before, LOCK}, "the replaced checkpoint is gone from the bucket, too"
    shutil.rmtree(run.path)
    with working(loaded.config):
        assert content(run.path) == before
        assert checkpoints.latest(run.checkpoints)[0].step == 30
    other = machine("second")
    with working(other.config):
        assert content(default_path(other.config)) == before


def test_a_checkpoint_without_its_manifest_is_none(machine, url):
    run = begin(machine("first"), 10, 20)
    (ObjectPath.parse(url) / "checkpoints/step-00000020/manifest.json").unlink(missing_ok=True)
    shutil.rmtree(run.path)
    with working(machine("first").config):
        assert checkpoints.latest(run.checkpoints) == (checkpoints.at(run.checkpoints, 10), [])
        save(run, machine("first").config, 30)
    names = {name.split("/")[1] for name in ObjectPath.parse(url).walk() if name.startswith("checkpoints/")}
    assert names == {"step-00000010", "step-00000030"}


def test_a_truncated_checkpoint_is_named_and_the_one_before_is_used(machine, url):
    loaded = machine("first")
    run = begin(loaded, 10, 20)
    damaged = ObjectPath.parse(url) / "checkpoints/step-00000020/engine.safetensors"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-40])
    shutil.rmtree(run.path)
    with working(loaded.config):
        newest, (named,) = checkpoints.latest(run.checkpoints)
        assert newest.step == 10
        assert named.path.name == "step-00000020"
        assert "engine.safetensors does not match its sha256" in named.reason
        save(run, loaded.config, 20)
    assert damaged.read_bytes() == whole


def test_the_mirror_that_was_last_goes_on_and_another_one_catches_up(machine):
    here, there = machine("here"), machine("there")
    run = begin(here, 10)
    (run.path / "status.json").write_text('{"state": "failed", "time": 1.0}')  # not put: the machine lost its network
    with working(here.config):
        assert run.status()["state"] == "failed"
    later = begin(there, 20, 30, 40)
    with working(here.config):
        assert content(run.path) == content(later.path)


def test_two_machines_at_once(machine, impatient, url):
    with working(machine("here").config):
        with pytest.raises(ValueError, match=rf"{url} is in use by process {os.getpid()} on .*end that command first"):
            begin(machine("there"))
        with pytest.raises(ValueError, match="in use by process"):
            begin(machine("here"))
    begin(machine("there"))


def test_a_dead_holder_is_taken_over_and_learns_of_it(impatient, url, monkeypatch):
    lock = ObjectPath.parse(url) / LOCK
    with leased(lock, "first", "one") as nobody:
        monkeypatch.setattr(icrl.store.lease._Renewal, "_change", lambda self, held: None)  # its network is gone
        with leased(lock, "second", "other") as before:
            assert (nobody, before) == (None, "first")
            require(lock, "second")
            with pytest.raises(LeaseLostError, match="is held by other"):
                require(lock, "first")


def test_a_session_that_was_taken_over_puts_nothing(machine, url):
    loaded = machine("here")

    def cut_off():
        with working(loaded.config):
            run = RunDirectory.open(loaded)
            save(run, loaded.config, 10)
            (ObjectPath.parse(url) / LOCK).write_bytes(b'{"token": "x", "owner": "somebody", "held": true}')
            with pytest.raises(LeaseLostError, match="is held by somebody"):
                save(run, loaded.config, 20)

    with pytest.raises(LeaseLostError, match="is held by somebody"):
        cut_off()
    assert not any("step-00000020" in name for name in ObjectPath.parse(url).walk())


@pytest.mark.parametrize("moment", ["before the puts", "before the deletions"])
def test_a_session_suspended_in_mid_push_leaves_the_files_of_the_next_one(machine, url, monkeypatch, moment):
    loaded = machine("here")
    lock = ObjectPath.parse(url) / LOCK
    with working(loaded.config):
        run = RunDirectory.open(loaded)
        save(run, loaded.config, 10)
        mine = lock.read_bytes()
        run.set_status("training", step=11)
        (run.path / "events.out.tfevents.1").touch()
        Mirror.of(run).push()
        (run.path / "events.out.tfevents.1").unlink()
        if moment == "before the puts":
            run.set_status("training", step=12)
        before = {name: size for name, size in ObjectPath.parse(url).walk().items() if name != LOCK}
        status = (ObjectPath.parse(url) / "status.json").read_bytes()
        walk = ObjectPath.walk

        def suspended(self):
            found = walk(self)
            lock.write_bytes(b'{"token": "x", "owner": "somebody", "held": true}')
            return found

        monkeypatch.setattr(ObjectPath, "walk", suspended)
        with pytest.raises(LeaseLostError, match="is held by somebody"):
            Mirror.of(run).push()
        monkeypatch.setattr(ObjectPath, "walk", walk)
        assert {name: size for name, size in ObjectPath.parse(url).walk().items() if name != LOCK} == before
        assert (ObjectPath.parse(url) / "status.json").read_bytes() == status
        lock.write_bytes(mine)


def test_records_are_put_before_data_and_manifests_after_it(machine, url, monkeypatch):
    put = []
    write = ObjectPath.write_bytes
    monkeypatch.setattr(ObjectPath, "write_bytes", lambda self, data: put.append(self.name) or write(self, data))
    loaded = machine("here")
    with working(loaded.config):
        run = RunDirectory.open(loaded)
        save(run, loaded.config, 10)
        first, put[:] = list(put), []
        save(run, loaded.config, 20)
        assert first[-2:] == ["run.json", "manifest.json"]
        assert put == ["metrics.jsonl", "status.json", "engine.safetensors", "progress.json", "manifest.json"]


def test_a_mirror_on_its_way_out_takes_nothing_from_the_bucket(machine, url):
    loaded = machine("here")
    with working(loaded.config):
        run = RunDirectory.open(loaded)
        save(run, loaded.config, 10)
        mirror = Mirror.of(run)
        shutil.rmtree(run.checkpoints)
        mirror.push()
        (run.path / "run.json").unlink()
        with pytest.raises(FileNotFoundError, match="the mirror of the run is gone"):
            mirror.push()
    assert "checkpoints/step-00000010/manifest.json" in ObjectPath.parse(url).walk()


def test_places_that_hold_something_else_or_nothing(machine, url, tmp_path, monkeypatch):
    (ObjectPath.parse(url) / "recipe.json").write_bytes(b"{}")
    with pytest.raises(RunConflictError, match=r"expected nothing there or a run, got recipe\.json"):
        begin(machine("here"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunConflictError, match=r"RUN_DIR = .*expected a run"), working_on(f"{url}/none"):
        pass
    assert not (tmp_path / "runs").exists()
    begin(machine("x", f"run.dir={url}/a"), 1)
    with pytest.raises(RunConflictError, match="holds a run of another config"):
        begin(machine("y", f"run.dir={url}/a", "train.optimizer.lr=0.5"))


def test_a_bucket_writes_into_the_mirror_alone(machine, url, server):
    """Keys may be anything; those that would lie elsewhere, or over what the mirror keeps for itself, are left."""
    begin(machine("here"), 1)
    store = S3Store(BUCKET, endpoint=f"http://127.0.0.1:{server}", client_options={"allow_http": True})
    strangers = ("logs/x", ".mirror.json", ".hidden/x", "a/.partial")
    for name in strangers:
        obstore.put(store, f"{ObjectPath.parse(url).key}/{name}", b"harm")
    loaded = machine("there")
    with working(loaded.config):
        path = default_path(loaded.config)
        assert not any(file.read_bytes() == b"harm" for file in path.rglob("*") if file.is_file())
    assert not any(map(_belongs, ("../x", "a/../../x", "/etc/x", "a//x", *strangers)))
    assert _belongs("checkpoints/step-00000001/manifest.json")


def test_a_copy_of_a_mirror_is_a_run_like_any_other(machine, url, tmp_path):
    run = begin(machine("here"), 1)
    shutil.copytree(run.path, tmp_path / "copy")
    assert Mirror.of(RunDirectory(tmp_path / "copy")) is None
    with working_on(str(tmp_path / "copy")) as copy:
        copy.set_status("failed")
    assert b"training" in (ObjectPath.parse(url) / "status.json").read_bytes()
    with working_on(str(run.path)) as itself:
        itself.set_status("stopped")
    assert b"stopped" in (ObjectPath.parse(url) / "status.json").read_bytes()


def test_folders_that_a_console_has_made_are_no_part_of_a_run(machine, url, server):
    key = ObjectPath.parse(url).key
    make_folder(server, key)
    run = begin(machine("here"), 10)
    for name in ("checkpoints", "checkpoints/step-00000010", "figures", "notes"):
        make_folder(server, f"{key}/{name}")
    (run.path / "empty.txt").touch()
    with working(machine("here").config):
        save(run, machine("here").config, 20)
    other = machine("there")
    with working(other.config):
        assert content(default_path(other.config)) == content(run.path)
    assert ObjectPath.parse(url).walk().keys() == {*content(run.path), LOCK}
    assert (run.path / "empty.txt").exists()


def test_a_key_that_is_no_path_is_named(machine, url, server):
    key = ObjectPath.parse(url).key
    make_folder(server, f"{key}/")
    with pytest.raises(OSError, match=rf"{key}//.* empty path segment: remove that object"):
        begin(machine("here"), 10)


@pytest.mark.parametrize(
    "words",
    [
        ("run", "{config}", "{run}", "--address", "auto"),
        ("submit", "--address", "http://127.0.0.1:1", "--", "run", "{config}", "{run}", "storage.root=/shared"),
        ("sweep", "{config}", "{run}", "seed=1,2", "--dry-run"),
    ],
)
def test_what_may_span_machines_is_refused(words, config, url):
    words = [word.format(config=config, run=f"run.dir={url}") for word in words]
    result = CliRunner().invoke(cluster_app, words)
    assert result.exit_code == 2
    assert f"run.dir = {url}: expected a directory for a" in result.output
    assert "storage.root=/shared/path" in result.output


def test_ranks_of_a_launcher_and_checkpoints_too_large_are_refused(machine, monkeypatch):
    loaded = machine("here")
    with pytest.raises(ValueError, match=r"expected checkpoints of at most 5 GiB there, got 6\.0 GiB"):
        require_fits(loaded.config, 6 * 2**30)
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "1")
    with pytest.raises(ValueError, match="expected a directory for torchrun or deepspeed"):
        check(loaded)


@pytest.mark.slow
def test_kill_9_and_the_loss_of_the_disk_end_in_the_same_bits(
    reference, tmp_path, config, url, commands, lasting_records, event_series, monkeypatch
):
    """The driver is killed, its disk is gone, and the newest checkpoint in the bucket is truncated: same bits."""
    (unkilled,) = (reference / "runs").iterdir()
    roots = [tmp_path / "first", tmp_path / "second"]
    for root in roots:
        shutil.copytree(reference / "data", root / "data")
    place = ObjectPath.parse(url)

    def put():
        return sorted(name for name in place.walk() if name.endswith("/manifest.json"))

    process = commands.start("train", config, f"storage.root={roots[0]}", f"run.dir={url}", "train.keep_checkpoints=3")
    deadline = time.monotonic() + 200
    while len(put()) < 3:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "training never came so far"
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=120)
    shutil.rmtree(roots[0])
    newest = place / put()[-1].replace("manifest.json", "engine.safetensors")
    newest.write_bytes(newest.read_bytes()[:-1])

    output = commands.run("train", config, f"storage.root={roots[1]}", f"run.dir={url}", "train.keep_checkpoints=3")
    (run,) = (roots[1] / "runs").iterdir()
    assert f"{newest.parent.name} is damaged (engine.safetensors does not match its sha256)" in output
    assert (run / "model.safetensors").read_bytes() == (unkilled / "model.safetensors").read_bytes()
    assert lasting_records(run) == lasting_records(unkilled)
    assert event_series(run) == event_series(unkilled)
    assert {name: (place / name).read_bytes() for name in place.walk() if name != LOCK} == {
        name: data for name, data in content(run).items() if not name.startswith("logs/")
    }

    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    monkeypatch.chdir(tmp_path)
    assert "transformer / teacher" in commands.run("eval", url, "eval.environments=8")
    assert "results.json" in place.walk()


@pytest.mark.slow
@pytest.mark.ray
def test_the_pipeline_on_a_local_ray_puts_everything(reference, tmp_path, config, url, commands, home):
    shutil.copytree(reference / "data", tmp_path / "data")
    commands.run("cluster", "run", config, f"storage.root={tmp_path}", f"run.dir={url}", "train.steps=20")
    (run,) = (tmp_path / "runs").iterdir()
    place = ObjectPath.parse(url)
    there = {name: (place / name).read_bytes() for name in place.walk() if name != LOCK}
    assert there == {name: data for name, data in content(run).items() if not name.startswith("logs/")}
    assert {"model.safetensors", "results.json", "figures/regret.png"} <= there.keys()
