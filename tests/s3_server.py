"""A real S3 server in a process of its own, and a wire to it that can be cut."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

SERVER = Path(sys.prefix) / "s3-server" / "bin" / "python"
"""Its environment is its own: what it asks for does not go with what the project asks for."""

BUCKET = "bucket"


def environment(port: int) -> dict[str, str]:
    """What a client of the server on this port needs; the keys are any."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "key-of-the-tests",
        "AWS_SECRET_ACCESS_KEY": "secret-of-the-tests",
    }


@contextlib.contextmanager
def serving(extra: Mapping[str, str] | None = None) -> Iterator[int]:
    """The port of an S3 server on 127.0.0.1 with an empty bucket; `extra` are settings of the server."""
    assert SERVER.exists(), (
        f"no S3 server in {SERVER.parent.parent}: `make test` installs it (requirements-s3-server.in)"
    )
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with tempfile.TemporaryFile() as log:
        command = [str(SERVER), "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        settings = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", **(extra or {})}
        process = subprocess.Popen(command, env=settings, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 60
            while not _makes_bucket(port):
                log.seek(0)
                assert process.poll() is None, log.read().decode()
                assert time.monotonic() < deadline, "the S3 server did not come up"
                time.sleep(0.1)
            yield port
        finally:
            process.kill()
            process.wait()


def _makes_bucket(port: int) -> bool:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/{BUCKET}", method="PUT")
    with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=5) as answer:
        return bool(answer.status == 200)
    return False


def make_folder(port: int, key: str) -> None:
    """What a console calls a folder: an empty object whose key ends in a slash."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/{BUCKET}/{key}/", data=b"", method="PUT")
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.status == 200


class Wire:
    """A TCP proxy that breaks the first `cuts` connections over which more than `after` bytes went in one direction."""

    def __init__(self, target: int, *, up: int | None = None, down: int | None = None, cuts: int = 0) -> None:
        self._target = target
        self._after = {"up": up, "down": down}
        self._left = cuts
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.broken = 0
        """Connections that were broken so far."""
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()

    def cut(self) -> None:
        """Break every connection and answer no more."""
        for each in (self._listener, *self._open):
            _break(each)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                self._open |= {client, server}
                for source, sink, direction in ((client, server, "up"), (server, client, "down")):
                    threading.Thread(target=self._pump, args=(source, sink, direction), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, direction: str) -> None:
        after = self._after[direction]
        passed = 0
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if after is not None and passed + len(data) > after and self._may_break():
                    sink.sendall(data[: after - passed] if passed < after else b"")
                    break
                sink.sendall(data)
                passed += len(data)
        _break(source)
        _break(sink)

    def _may_break(self) -> bool:
        with self._lock:
            if self._left == 0:
                return False
            self._left -= 1
            self.broken += 1
            return True


def _break(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
