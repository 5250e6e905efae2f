"""Following a `metrics.jsonl` while another process writes it, without reading it from its beginning every time."""

from __future__ import annotations

import json
from pathlib import Path

from icrl.board import Record


class Tail:
    """The records of one file, each once. For one thread."""

    def __init__(self, path: Path) -> None:
        """`path` need not exist yet."""
        self._path = path
        self._offset = 0
        """Bytes that were read, all of whole lines."""
        self._last = b""
        """The last of these lines. A run that resumes replaces the file by one with fewer records: it is then no
        longer what ends at the offset, since every record has a time of its own."""

    def new(self) -> list[Record]:
        """The whole records that were added since the last call; of a file that was replaced all, from the first on."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset - len(self._last))
                data = file.read()
                if not data.startswith(self._last):
                    self._offset, self._last = 0, b""
                    file.seek(0)
                    data = file.read()
        except FileNotFoundError:
            self._offset, self._last = 0, b""
            return []
        records: list[Record] = []
        for line in data[len(self._last) :].split(b"\n")[:-1]:  # what follows the last end of a line is not whole yet
            try:
                records.append(json.loads(line))
            except ValueError:
                break
            self._last = line + b"\n"
            self._offset += len(self._last)
        return records
