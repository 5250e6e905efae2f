"""What travels to a cluster, to whom it talks, and how its workers meet; without one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch.distributed

from cluster.package import Package
from cluster.process_group import _join


def test_no_file_named_like_a_secret_travels(tmp_path: Path) -> None:
    secrets = (
        "ray-token", "token", "auth_token", "hub_token.txt", ".env", ".env.local", "deep/id_ed25519", "id_rsa.pub",
        "tls.key", "ca.pem", "a.p12", ".netrc", ".git-credentials", "credentials", "gcp-credentials-1.json", ".pypirc",
        ".npmrc", ".aws/config", ".ssh/config", ".kube/config", ".docker/config.json",
    )  # fmt: skip
    code = ("icrl/tokens/mdp.py", "identity.py", "docs/credentials.md", "token.py")
    for name in (*secrets, *code):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert sorted(map(str, Package.of(tmp_path).files)) == sorted(code)


def test_workers_of_one_machine_meet_on_the_loopback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[dict[str, Any]] = []
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda **settings: started.append(settings))
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "eth0")
    _join(0, "nccl", str(tmp_path / "meeting" / "store"), 2, 60)
    assert started[0]["init_method"].startswith("file://")
    assert os.environ["GLOO_SOCKET_IFNAME"] == os.environ["NCCL_SOCKET_IFNAME"] == "lo"
