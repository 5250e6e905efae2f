"""A board that `python -m cluster board` serves, as its HTTP API shows it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Page:
    """A board's HTTP API."""

    def __init__(self, url: str) -> None:
        self._url = url

    def get(self, path: str, body: dict[str, Any] | None = None, **query: str) -> bytes:
        address = f"{self._url}data/{path}" + (f"?{urllib.parse.urlencode(query)}" if query else "")
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read()

    def json(self, path: str, body: dict[str, Any] | None = None, **query: str) -> Any:
        return json.loads(self.get(path, body, **query))

    def sessions(self) -> dict[str, dict[str, Any]]:
        """Run -> its hparams, metrics and status."""
        body = {
            "experimentName": "",
            "allowedStatuses": [f"STATUS_{s}" for s in ("UNKNOWN", "SUCCESS", "FAILURE", "RUNNING")],
            "colParams": [],
            "startIndex": 0,
            "sliceSize": 100,
        }
        return {
            group["name"]: {
                "hparams": group["hparams"],
                "status": group["sessions"][0].get("status"),
                "metrics": {m["name"]["tag"]: m["value"] for m in group.get("metricValues", [])},
            }
            for group in self.json("plugin/hparams/session_groups", body)["sessionGroups"]
        }


def until(condition: Callable[[], object], patience: float = 60) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.2)


@contextmanager
def board(*arguments: object) -> Iterator[tuple[Page, subprocess.Popen[str]]]:
    command = [sys.executable, "-m", "cluster", "board", *map(str, arguments)]
    process = subprocess.Popen(
        command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if match := re.search(r"http://127\.0\.0\.1:\d+/", line):
                yield Page(match[0]), process
                break
        else:
            raise AssertionError("".join(lines))
        assert not [line for line in lines[:-1] if not line.startswith("board of ")], "quiet"
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=120)
