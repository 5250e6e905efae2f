"""kill -9 at random moments of a generation: what is left is resumed to the bytes of a run that nobody killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from data_gen.worker import IN_FLIGHT
from icrl.config import Config, DatasetConfig, LinearBanditConfig, TrainConfig, dump
from icrl.store import SPLITS, verify

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys
from data_gen.generate import generate
from icrl.config import load
config = load(sys.argv[1]).config
print("ready", flush=True)
generate(config, progress=lambda p: print(p.shards, flush=True))
print("done", flush=True)
"""


def start(config_file):
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(config_file)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


def tree(dataset):
    files = {str(p.relative_to(dataset)): p.read_bytes() for p in sorted(dataset.rglob("*")) if p.is_file()}
    files.pop(".lock")
    for split in SPLITS:
        group = json.loads(files[f"{split}.zarr/zarr.json"])
        del group["attributes"]["provenance"]
        files[f"{split}.zarr/zarr.json"] = json.dumps(group)
    return files


def config_at(path):
    config = Config(
        environment=LinearBanditConfig(dim=2, n_actions=3, horizon=10),
        dataset=DatasetConfig(path=str(path), train=20_000, validation=300, test=300, actors=0),
        train=TrainConfig(global_batch=8),
    )
    file = path.with_suffix(".yaml")
    file.write_text(dump(config))
    return file


def test_killed_and_resumed_is_byte_identical(tmp_path):
    whole = start(config_at(tmp_path / "whole"))
    lines = whole.communicate(timeout=120)[0].split()
    assert lines[-1] == "done"
    shards = int(lines[-2])

    rng = random.Random(0)
    config_file = config_at(tmp_path / "killed")
    kills = written = 0
    while True:
        process = start(config_file)
        progressed = 0
        # the first kill falls before any shard, the others each some shards later
        survive = 0 if kills == 0 else rng.randint(1, 3)
        for line in process.stdout:
            if line.strip() == "done":
                break
            progressed += line.strip().isdigit()
            if progressed >= survive:
                time.sleep(rng.uniform(0, 0.02))
                os.kill(process.pid, signal.SIGKILL)
                kills += 1
                break
        rest = process.stdout.read().split()
        code = process.wait(60)
        written += progressed + sum(entry.isdigit() for entry in rest)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        assert kills < 20
    assert kills >= 3
    # what is committed stays; a kill may hide the reports of the shards in hand
    assert shards - IN_FLIGHT * kills <= written <= shards
    assert tree(tmp_path / "killed") == tree(tmp_path / "whole")
    found = verify(tmp_path / "killed")
    assert (found.faults, found.shards) == ((), shards)
