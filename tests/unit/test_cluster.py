"""What travels to a cluster, to whom it talks, and how its workers meet; without one."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
import torch.distributed

from cluster import jobs
from cluster.jobs import Jobs
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


class Dashboard(BaseHTTPRequestHandler):
    """As much of one as a client asks for at first."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        body = json.dumps({"ray_version": "99.0", "data": {"hostNameList": ["here"]}, "version": "4"}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def dashboard() -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []
    server = HTTPServer(("127.0.0.1", 0), type("Asked", (Dashboard,), {"asked": asked}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def test_no_proxy_sees_what_goes_to_this_machine(
    dashboard: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, asked = dashboard
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):  # nothing listens there
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "example.org")
    monkeypatch.setenv("no_proxy", "")
    assert Jobs.at(url).hosts == {"here"}
    assert len(asked) >= 3, "by both clients"
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == "example.org,127.0.0.1"
    jobs._go_round_proxies("http://head:8265")
    assert os.environ["no_proxy"] == "example.org,127.0.0.1"


def test_a_log_is_followed_across_broken_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_POLL_S", 0.0)
    request: Any = SimpleNamespace(real_url="http://127.0.0.1:8265")
    breaks = [aiohttp.ServerDisconnectedError(), aiohttp.WSServerHandshakeError(request, ()), RuntimeError()]
    states = ["RUNNING", "RUNNING", "RUNNING", "SUCCEEDED"]

    class Client:
        async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
            yield "one\n"
            yield "two\n"
            if breaks:
                raise breaks.pop(0)
            yield "three\n"

        def get_job_info(self, job: str) -> Any:
            return SimpleNamespace(status=states.pop(0))

        def get_job_logs(self, job: str) -> str:
            return "one\ntwo\nthree\nfour\n"

    written: list[str] = []
    Jobs("http://127.0.0.1:8265", Client(), frozenset()).follow("job", written.append)
    assert "".join(written) == "one\ntwo\nthree\nfour\n"
