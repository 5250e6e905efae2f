"""Datasets in an object store: a real S3 server over HTTP, killed writers, cut connections, damaged objects."""

import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import obstore
import pytest
import zarr
from obstore.store import S3Store
from typer.testing import CliRunner
from zarr.storage import ObjectStore

import icrl.store.commit
from cluster.__main__ import app as cluster_app
from data_gen.__main__ import app
from data_gen.generate import generate
from data_gen.plan import plan
from icrl.config import Config, DatasetConfig, LinearBanditConfig, TrainConfig, dump, override
from icrl.source import stored_arrays
from icrl.store import (
    SPLITS,
    SplitReader,
    dataset_path,
    dataset_recipe,
    initialise,
    verify,
    withdraw,
)
from icrl.store.s3 import ObjectStoreError
from tests.s3_server import BUCKET, Wire, environment, make_folder, serving
from train.dataset import TrajectoryStream, batches_in_order

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys
from data_gen.generate import generate
from icrl.config import load
generate(load(sys.argv[1]).config, progress=lambda p: print(p.shards, flush=True))
"""


@pytest.fixture(scope="module")
def server():
    with serving() as port:
        yield port


@pytest.fixture
def use(monkeypatch):
    """Make this process, and what it starts, a client of the server on a port."""

    def use(port, **settings):
        for name, value in (environment(port) | settings).items():
            monkeypatch.setenv(name, value)

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    return use


@pytest.fixture
def config(server, use, request):
    use(server)
    url = f"s3://{BUCKET}/{request.node.name.partition('[')[0]}/{random.Random(request.node.name).getrandbits(32):x}"
    return Config(
        environment=LinearBanditConfig(dim=2, n_actions=3, horizon=10),
        dataset=DatasetConfig(path=url, train=20_000, validation=300, test=0, actors=0),
        train=TrainConfig(global_batch=96),
    )


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """The same dataset on a disk."""
    config = Config(
        environment=LinearBanditConfig(dim=2, n_actions=3, horizon=10),
        dataset=DatasetConfig(
            path=str(tmp_path_factory.mktemp("set") / "a"), train=20_000, validation=300, test=0, actors=0
        ),
        train=TrainConfig(global_batch=96),
    )
    generate(config)
    return dataset_path(config)


def client(port):
    return S3Store(BUCKET, endpoint=f"http://127.0.0.1:{port}", client_options={"allow_http": True})


def objects(config, port):
    """Key below the dataset -> bytes, asked of the server itself; provenance may differ between two runs."""
    prefix = dataset_path(config).key + "/"
    store = client(port)
    keys = [entry["path"] for page in obstore.list(store, prefix) for entry in page]
    return without_provenance({key.removeprefix(prefix): obstore.get(store, key).bytes().to_bytes() for key in keys})


def files(dataset):
    found = {str(p.relative_to(dataset)): p.read_bytes() for p in sorted(dataset.rglob("*")) if p.is_file()}
    del found[".lock"]
    return without_provenance(found)


def without_provenance(found):
    for split in SPLITS:
        group = json.loads(found[f"{split}.zarr/zarr.json"])
        del group["attributes"]["provenance"]
        found[f"{split}.zarr/zarr.json"] = json.dumps(group)
    return found


def test_objects_are_the_files_of_a_local_dataset(config, server, local):
    summary = generate(config)
    assert (summary.shards_written, summary.trajectories_written) == (len(plan(config).tasks) + 12, 20_300)
    assert objects(config, server) == files(local)
    assert plan(config).complete
    assert generate(config).shards_written == 0
    found = verify(dataset_path(config), lambda split, indices: stored_arrays(config, split, indices))
    assert (found.faults, found.chunks_regenerated) == ((), 8 + 2)
    assert found.bytes == summary.bytes_written


def test_a_place_travels_without_credentials(config):
    here = dataset_path(config)
    sent = pickle.dumps(here)
    assert b"of-the-tests" not in sent
    assert pickle.loads(sent) == here
    assert str(here) == config.dataset.path


def test_only_what_is_missing_is_written(config, server, local):
    generate(config)
    withdraw(dataset_path(config), "train", 3)
    obstore.delete(client(server), f"{dataset_path(config).key}/validation.zarr/source/c.1")
    assert [(task.split, task.shard) for task in plan(config).tasks] == [("train", 3), ("validation", 1)]
    with pytest.raises(ValueError, match=rf"{config.dataset.path}/train.zarr: 1 of 10 shards are missing"):
        SplitReader(dataset_path(config), "train")
    assert generate(config).shards_written == 2
    assert objects(config, server) == files(local)


def test_killed_writers_leave_what_the_next_one_completes(config, server, local, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(dump(config))
    rng = random.Random(1)
    kills = 0
    while True:
        process = subprocess.Popen([sys.executable, "-c", PROGRAM, file], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for shards, _ in enumerate(process.stdout):
            if shards >= kills:
                time.sleep(rng.uniform(0, 0.01))
                process.kill()
                break
        process.stdout.read()
        code = process.wait(60)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        kills += 1
        assert kills < 12
        if kills < 3:
            assert not plan(config).complete
    assert kills >= 3
    assert objects(config, server) == files(local)


def test_two_writers_of_one_recipe_put_the_same_bytes(config, server, local, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(dump(config))
    both = [subprocess.Popen([sys.executable, "-c", PROGRAM, file], cwd=ROOT, stdout=subprocess.PIPE) for _ in "ab"]
    assert [process.wait(120) for process in both if process.communicate()] == [0, 0]
    assert objects(config, server) == files(local)


def test_of_two_recipes_the_first_keeps_the_place(config, server, monkeypatch):
    initialise(dataset_path(config), config, {"commit": "first"})
    before = objects(config, server)
    other = override(config, ["environment.horizon=11"])
    with pytest.raises(ValueError, match=r"environment\.horizon: 10 -> 11"):
        plan(other)
    # a writer that looked before the first one wrote finds out when it writes
    read = icrl.store.commit.read_recipe
    answers = iter([None])
    monkeypatch.setattr(icrl.store.commit, "read_recipe", lambda dataset: next(answers, None) or read(dataset))
    monkeypatch.setattr(icrl.store.commit, "require_dataset_place", lambda dataset: None)
    with pytest.raises(ValueError, match=r"environment\.horizon: 10 -> 11"):
        initialise(dataset_path(config), other, {"commit": "second"})
    assert objects(config, server) == before


def test_a_prefix_of_something_else_is_left_alone(config, server):
    key = dataset_path(config).key
    obstore.put(client(server), f"{key}/thesis/chapter.tex", b"mine")
    with pytest.raises(ValueError, match=rf"{config.dataset.path} is no dataset, yet holds thesis"):
        plan(config)
    obstore.put(client(server), f"{key}/slides", b"a file")
    with pytest.raises(ValueError, match="expected a directory, got a file"):
        plan(override(config, [f"dataset.path={config.dataset.path}/slides"]))


def test_folders_that_a_console_has_made_are_no_part_of_a_dataset(config, server, local):
    key = dataset_path(config).key
    make_folder(server, key)
    generate(config)
    for name in ("train.zarr", "train.zarr/source"):
        make_folder(server, f"{key}/{name}")
    assert plan(config).complete
    assert generate(config).shards_written == 0
    found = verify(dataset_path(config), lambda split, indices: stored_arrays(config, split, indices))
    assert found.faults == ()


@pytest.mark.parametrize("direction", ["up", "down"])
def test_writes_survive_cut_connections(config, server, local, use, direction):
    # up: in the middle of a PUT's body; down: a PUT whose answer is lost is sent again
    with Wire(server, **{direction: 40_000 if direction == "up" else 4_000}, cuts=4) as wire:
        use(wire.port)
        generate(config)
        assert wire.broken == 4
    assert objects(config, server) == files(local)


def test_reads_survive_cut_connections(config, server, local, use):
    generate(config)
    expected = SplitReader(local, "train").rows(slice(None))
    with Wire(server, down=50_000, cuts=5) as wire:
        use(wire.port)
        found = SplitReader(dataset_path(config), "train").rows(slice(None))
        assert wire.broken == 5
        assert found.keys() == expected.keys()
        for name, values in found.items():
            np.testing.assert_array_equal(values, expected[name], strict=True)
        assert verify(dataset_path(config)).faults == ()


def test_a_connection_that_stays_broken_ends_in_one_error_and_nothing_half_written(config, server, local, use):
    with Wire(server, up=30_000, cuts=1000) as wire:
        use(wire.port, AWS_MAX_ATTEMPTS="3")
        with pytest.raises(OSError, match=rf"{config.dataset.path}/train\.zarr/.*127\.0\.0\.1:{wire.port}.*resumes$"):
            generate(config)
        assert wire.broken in (3, 6, 9)  # three attempts for each shard in flight
    use(server)
    assert not any("_commits" in key for key in list_keys(config, server))
    generate(config)
    assert objects(config, server) == files(local)


def list_keys(config, port):
    return [e["path"] for page in obstore.list(client(port), dataset_path(config).key + "/") for e in page]


@pytest.mark.parametrize("actors", [0, pytest.param(2, marks=pytest.mark.ray)])
def test_a_server_that_goes_away_is_one_message_and_exit_code_1(config, server, local, use, tmp_path, home, actors):
    file = tmp_path / "config.yaml"
    file.write_text(dump(config))
    wire = Wire(server)
    use(wire.port, AWS_MAX_ATTEMPTS="2")
    process = subprocess.Popen(
        [sys.executable, "-m", "data_gen", file, f"dataset.actors={actors}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while process.poll() is None and not any("_commits" in key for key in list_keys(config, server)):
        time.sleep(0.02)
    wire.cut()
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 1, output
    (line,) = [line for line in output.splitlines() if "does not answer" in line]
    assert line.startswith(f"failed: {config.dataset.path}/")
    assert f"http://127.0.0.1:{wire.port} does not answer" in line
    assert "Traceback" not in output
    assert "secret-of-the-tests" not in output
    use(server)
    assert 0 < len(plan(config).tasks) < 12
    generate(config)
    assert objects(config, server) == files(local)


def test_a_server_that_is_down_is_one_message_and_exit_code_2(config, use, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(dump(config))
    wire = Wire(1)
    wire.cut()
    use(wire.port, AWS_MAX_ATTEMPTS="2")
    for module, program in (("data_gen", app), ("cluster run", cluster_app)):
        words = [*module.split()[1:], str(file), f"storage.root={tmp_path}", "model.layers=1"]
        result = CliRunner().invoke(program, words)
        assert result.exit_code == 2, result.output
        (line,) = result.output.splitlines()
        assert line.startswith(f"error: {config.dataset.path}")
        assert f"http://127.0.0.1:{wire.port} does not answer" in line
        assert "AWS_ENDPOINT_URL" in line
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_bad_settings_of_the_environment_are_named(config, server, use, monkeypatch):
    with pytest.raises(ValueError, match=r"has no bucket elsewhere: make it, or correct the URL"):
        plan(override(config, ["dataset.path=s3://elsewhere/a"]))
    use(server, AWS_MAX_ATTEMPTS="many")
    with pytest.raises(ValueError, match=r"AWS_MAX_ATTEMPTS = 'many': expected a number"):
        plan(config)
    monkeypatch.delenv("AWS_MAX_ATTEMPTS")
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    with pytest.raises(ValueError, match=r"AWS_ENDPOINT_URL = http://127.* set AWS_ALLOW_HTTP=true"):
        plan(config)
    for endpoint in ("not a url", "https://user:hush@127.0.0.1:9000", "ftp://host"):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        with pytest.raises(ValueError, match=r"AWS_ENDPOINT_URL = .*: expected https://host") as caught:
            plan(config)
        assert "hush" not in str(caught.value)


def test_denied_access_is_named_without_the_keys(config, use):
    with serving({"INITIAL_NO_AUTH_ACTION_COUNT": "1"}) as port:  # one request without: it makes the bucket
        use(port)
        with pytest.raises(ObjectStoreError, match=r"denies access.*: check AWS_ACCESS_KEY_ID") as caught:
            plan(config)
    assert "of-the-tests" not in str(caught.value)


@pytest.mark.parametrize("damage", ["flipped", "truncated"])
def test_damage_is_found_and_named_by_verify_and_by_the_reader(config, server, local, damage):
    generate(config)
    dataset = dataset_path(config)
    path = dataset / "train.zarr" / "reward" / "c.3.0"
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    reader = SplitReader(dataset, "train")
    obstore.put(client(server), path.key, bytes(data) if damage == "flipped" else bytes(data[:900]))
    (fault,) = verify(dataset).faults
    assert (fault.path, fault.split, fault.shard) == (path, "train", 3)
    with pytest.raises(ValueError, match=rf"{path}.*(not have its crc32c|ends at byte 900).*repair {dataset}"):
        reader.chunk(3 * reader.geometry.chunks)
    result = CliRunner().invoke(app, ["verify", str(dataset)])
    assert result.exit_code == 1, result.output
    assert f"damaged         {path}: " in result.output
    result = CliRunner().invoke(app, ["repair", str(dataset)])
    assert result.exit_code == 0, result.output
    assert "written again   train shard 3: " in result.output
    assert objects(config, server) == files(local)
    for command, expected in (("verify", "sound"), ("inspect", "regret at t")):
        result = CliRunner().invoke(app, [command, str(dataset)])
        assert (result.exit_code, expected in result.output) == (0, True), result.output


@pytest.mark.parametrize("command", ["verify", "repair", "inspect"])
def test_a_store_that_does_not_answer_is_no_fault_of_the_dataset(config, server, use, command):
    generate(config)
    before = objects(config, server)
    with Wire(server, down=6_000, cuts=1000) as wire:
        use(wire.port, AWS_MAX_ATTEMPTS="2")
        result = CliRunner().invoke(app, [command, config.dataset.path])
    assert result.exit_code in (1, 2), result.output
    (line,) = [line for line in result.output.splitlines() if "does not answer" in line]
    assert line.startswith(("failed: ", "error: "))
    assert "damaged" not in result.output
    assert objects(config, server) == before
    result = CliRunner().invoke(app, [command, "s3://key:hush@bucket/x"])
    assert result.exit_code == 2
    assert "expected s3://bucket/prefix" in result.output
    assert "hush" not in result.output


def test_training_gets_the_batches_of_the_local_dataset(config, local):
    generate(config)
    ours, theirs = (SplitReader(place, "train", dataset_recipe(config)) for place in (dataset_path(config), local))
    streams = [TrajectoryStream(r, config.environment, global_batch=96, seed=1) for r in (ours, theirs)]
    for step in (0, 1, 2, 150, 207, 208, 500):
        found, expected = (stream.batch(step) for stream in streams)
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            np.testing.assert_array_equal(found[name], values, strict=True)
    ordered = [batches_in_order(r, config.environment, 7000) for r in (ours, theirs)]
    for found, expected in zip(*ordered, strict=True):
        for name, values in expected.items():
            np.testing.assert_array_equal(found[name], values, strict=True)
    with pytest.raises(ValueError, match="read-only"):
        ours.chunk(0)["reward"][0] = 0


def test_the_memory_of_a_reader_is_bounded(config, local, monkeypatch):
    generate(config)
    reader = SplitReader(dataset_path(config), "train")
    monkeypatch.setattr("icrl.store.ranges.KEPT_BYTES", 20 * reader._ranges._bytes)
    monkeypatch.setattr("icrl.store.ranges.BATCH_BYTES", 7 * reader._ranges._bytes)
    expected = SplitReader(local, "train")
    order = np.random.default_rng(0).permutation(reader.n_chunks)
    reader.will_need(order.tolist())
    for chunk in order:
        np.testing.assert_array_equal(reader.chunk(chunk)["action"], expected.chunk(chunk)["action"], strict=True)
        assert len(reader._ranges._kept) <= 20
    assert len(reader._ranges._kept) > 7


def test_zarr_python_opens_the_store_by_its_place(config, server, local):
    generate(config)
    key = dataset_path(config).key
    store = S3Store(BUCKET, prefix=f"{key}/train.zarr")  # endpoint and keys from the environment
    group = zarr.open_group(ObjectStore(store, read_only=True), mode="r")
    assert group.attrs["recipe"] == dataset_recipe(config)
    for name, values in SplitReader(local, "train").rows(slice(None)).items():
        np.testing.assert_array_equal(group[name][:], values, strict=True)
