"""The local Ray of a command: private, on the loopback alone, and gone afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray

SCRIPT = """
import json, os, sys
from pathlib import Path
import psutil
from data_gen.local_ray import local_ray

with local_ray() as nothing:
    import ray

    family = {p.pid for p in psutil.Process().children(recursive=True)} | {os.getpid()}
    listening = [c.laddr.ip for c in psutil.net_connections() if c.status == "LISTEN" and c.pid in family]
    directory = ray._private.worker._global_node.get_temp_dir_path()
    mode = os.stat(Path(directory).parent).st_mode & 0o777
    auth = os.environ["RAY_AUTH_MODE"], os.stat(os.environ["RAY_AUTH_TOKEN_PATH"]).st_mode & 0o777
    children = psutil.Process().children(recursive=True)
psutil.wait_procs(children, timeout=20)
left = [p.name() for p in children if p.is_running() and p.status() != "zombie"]
record = dict(listening=listening, gone=not Path(directory).parent.exists(), mode=mode, auth=auth, left=left)
print("RECORD " + json.dumps(record))
"""


def test_it_listens_on_the_loopback_alone_and_leaves_nothing(tmp_path: Path) -> None:
    # an address in the environment must not divert it to another cluster
    environment = os.environ | {"HOME": str(tmp_path), "RAY_ADDRESS": "127.0.0.1:1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads(done.stdout.split("RECORD ")[1])
    assert record["listening"]
    assert {ip.removeprefix("::ffff:") for ip in record["listening"]} == {"127.0.0.1"}
    assert record["auth"] == ["token", 0o600]
    assert record["mode"] == 0o700
    assert record["gone"]
    assert record["left"] == []
    assert not (tmp_path / ".ray").exists(), "no token is left in HOME"
