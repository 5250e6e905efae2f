"""The one writer of metrics: `metrics.jsonl` is the truth, the TensorBoard event file is made from the same records.

Tags are grouped as train/ eval/ theory/ perf/ data/ health/. Opening a board again drops the records that the caller
does not keep (those past the checkpoint it resumes from) and writes one fresh event file from what is left: hparams,
config, scalars and images alike. The event file lies in the run directory itself, so that TensorBoard calls the run by
the directory's name.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import secrets
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import tensorboardX.summary
from tensorboardX import SummaryWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary

from icrl import hparams
from icrl.files import atomic_write, read_json
from icrl.hparams import Outcome, Value
from icrl.masking import mask, masked_yaml
from icrl.run_dir import RunDirectory

Record = dict[str, Any]
"""step, time (seconds since 1970), tags: name -> value; images: name -> PNG file, relative to the run, if any."""

CHOSEN_HPARAMS = "hparams.json"
"""File of a run directory: the values that are shown as its hparams, by dotted path of the config."""

GROUPS = ("train", "eval", "theory", "perf", "data", "health")

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_START = 24
"""Bytes up to and with the size."""

_OUTCOMES: dict[str, Outcome] = {"trained": "SUCCESS", "done": "SUCCESS", "failed": "FAILURE", "diverged": "FAILURE"}
"""What a run's state means for its board; in any other state the run may still go on."""


def read_records(path: Path) -> list[Record]:
    """Every whole record of a `metrics.jsonl`; a line torn by a crash ends the list."""
    records: list[Record] = []
    if path.exists():
        for line in path.read_bytes().split(b"\n")[:-1]:
            try:
                records.append(json.loads(line))
            except ValueError:
                break
    return records


class Board:
    """Scalars, images, hparams and the config of one run."""

    def __init__(self, run: RunDirectory, keep: Callable[[Record], bool]) -> None:
        """Open the run's board with the records that `keep` accepts."""
        self._run = run
        kept = [record for record in read_records(run.metrics) if keep(record)]
        atomic_write(run.metrics, b"".join(_line(record) for record in kept))
        # what a damaged run does not have is missed before its event file is replaced
        values, began = _session(run)
        resolved = (run.path / "resolved.yaml").read_text()
        self._writer = _fresh_writer(run.path)
        for summary in hparams.begin(values, began):
            self._writer.file_writer.add_summary(summary, 0, began)
        config = _text("resolved_config", f"```yaml\n{masked_yaml(resolved)}```")
        self._writer.file_writer.add_summary(config, 0, began)
        for record in kept:
            self._write(record)
        self._stream = run.metrics.open("ab", buffering=0)  # a buffer would be written again when it is closed

    def scalars(self, step: int, tags: Mapping[str, float], images: Mapping[str, Path] | None = None) -> None:
        """Append one record; `images` are PNG files in the run directory.

        A value that is not finite is recorded as health/nonfinite = 1 beside the others.

        Raises:
            OSError: the disk is full, or refuses; names the file.
        """
        values: dict[str, float] = {}
        for tag in (*tags, *(images or ())):
            if tag.partition("/")[0] not in GROUPS:
                raise ValueError(f"tag {tag}: expected a group of {', '.join(GROUPS)}")
        for tag, value in tags.items():
            if math.isfinite(value):
                values[tag] = float(value)
            else:
                values["health/nonfinite"] = 1.0
        record: Record = {"step": step, "time": time.time(), "tags": values}
        if images:
            record["images"] = {tag: str(png.relative_to(self._run.path)) for tag, png in images.items()}
        self._append(_line(record))
        self._write(record)

    def flush(self) -> None:
        """Put what was recorded on disk.

        Raises:
            OSError: the disk is full, or refuses; names the run.
        """
        try:
            self._writer.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._run.path)) from error

    def close(self, outcome: Outcome | None = None) -> None:
        """Flush and close both files; the hparams are closed with the outcome, by default what the run's state says.

        A run that was stopped, or whose state is still that of work in progress, stays open: it may go on.
        """
        outcome = outcome or _OUTCOMES.get(self._run.status()["state"])
        if outcome is not None:
            self._writer.file_writer.add_summary(hparams.end(outcome, time.time()))
        self._stream.close()
        # what a full disk refuses is written again, from the records, when the board is next opened
        with contextlib.suppress(OSError):
            self._writer.close()

    def _append(self, line: bytes) -> None:
        while line:
            try:
                line = line[self._stream.write(line) :]
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(self._run.metrics)) from error

    def _write(self, record: Record) -> None:
        if not self._writer.file_writer.event_writer._worker.is_alive():
            # tensorboardX writes in a thread that a full disk ends; its queue would then block for ever
            raise OSError(errno.EIO, "TensorBoard's events cannot be written", str(self._run.path))
        for tag, value in record["tags"].items():
            self._writer.add_scalar(tag, value, record["step"], walltime=record["time"])
        for tag, name in record.get("images", {}).items():
            png = self._run.path / name
            if _is_picture_in(self._run.path, png):
                self._writer.file_writer.add_summary(_image(tag, png), record["step"], record["time"])


def choose_hparams(run: RunDirectory, values: Mapping[str, Any]) -> None:
    """Show these values as the run's hparams in place of the default ones, from the next time its board is opened.

    Keys are dotted paths of the config; the board shows their last words. A sweep names what varies in it. `run` must
    have been opened with `RunDirectory.open`. What is neither a number nor a text is shown as JSON.
    """
    shown = {key: value if isinstance(value, Value) else json.dumps(value) for key, value in values.items()}
    # in the order given, which is that of the columns
    atomic_write(run.path / CHOSEN_HPARAMS, json.dumps(shown, indent=2, ensure_ascii=False).encode() + b"\n")


def settle(run: RunDirectory, outcome: Outcome | None = None) -> Outcome | None:
    """Close the board of a run that ended without doing so, and return the outcome it then shows, None while open.

    For whoever finds the run later: a failed one, or one that a kill left behind in mid-training. A run that somebody
    works on, or that was stopped, stays as it is; `outcome` closes one that was stopped for good. The caller must not
    hold the run's lock.
    """
    state = run.status()["state"]
    outcome = outcome or ("FAILURE" if state == "training" else _OUTCOMES.get(state))
    shown = recorded_outcome(run)
    if outcome is None or outcome == shown or not run.metrics.exists():
        return shown
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(run.alone())
        except (ValueError, OSError):  # somebody works on it, or it is not ours to write
            return shown
        Board(run, keep=lambda record: True).close(outcome)
    return outcome


def recorded_outcome(run: RunDirectory) -> Outcome | None:
    """The outcome in the run's event file."""
    for path in event_files(run.path):
        for content in _events(path):
            # most events are points of curves: only what may be an outcome is parsed
            if hparams.END_TAG.encode() in content:
                return hparams.outcome_of(Event.FromString(content).summary)
    return None


def write_snapshot(directory: Path, step: int, texts: Mapping[str, str], images: Mapping[str, Path]) -> None:
    """One run that shows a state of affairs: Markdown texts and PNG images, in place of what the directory showed."""
    directory.mkdir(parents=True, exist_ok=True)
    writer = _fresh_writer(directory)
    for tag, text in texts.items():
        writer.file_writer.add_summary(_text(tag, text), step)
    for tag, png in images.items():
        writer.file_writer.add_summary(_image(tag, png), step)
    writer.close()


def event_files(directory: Path) -> list[Path]:
    """The event files of the run in a directory."""
    return sorted(directory.glob("events.out.tfevents.*"))


def _session(run: RunDirectory) -> tuple[dict[str, Value], float]:
    """The run's hparams, secrets masked, and when it was created."""
    chosen = run.path / CHOSEN_HPARAMS
    values = read_json(chosen) if chosen.exists() else hparams.shown_by_default(run.config())
    return mask(values), read_json(run.path / "run.json")["created"]


def _fresh_writer(directory: Path) -> SummaryWriter:
    """A writer whose event file is the only one in the directory."""
    old = event_files(directory)
    # the name is new even within the second: a TensorBoard that follows the old file must not go on in this one
    writer = SummaryWriter(logdir=str(directory), flush_secs=10, filename_suffix=f".{secrets.token_hex(4)}")
    for path in old:
        path.unlink(missing_ok=True)
    return writer


def _text(tag: str, text: str) -> Summary:
    """Markdown under the tag as it is given; tensorboardX would lengthen it."""
    summary = tensorboardX.summary.text(tag, text)
    summary.value[0].tag = tag
    return summary


def _is_picture_in(directory: Path, png: Path) -> bool:
    """Whether a PNG lies there: the records of a run from elsewhere may name any file of this machine."""
    if not png.is_file() or not png.resolve().is_relative_to(directory.resolve()):
        return False
    with png.open("rb") as file:
        start = file.read(_PNG_START)
    return start.startswith(_PNG) and len(start) == _PNG_START


def _image(tag: str, png: Path) -> Summary:
    """The file as it is; a PNG's size stands in its first chunk."""
    data = png.read_bytes()
    width, height = struct.unpack(">II", data[16:24])
    image = Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=data)
    return Summary(value=[Summary.Value(tag=tag, image=image)])


def _events(path: Path) -> Iterator[bytes]:
    """The whole events of a file: each is its length (8 bytes), a sum (4), the event and a sum (4)."""
    data = path.read_bytes()
    start = 0
    while start + 12 <= len(data):
        (size,) = struct.unpack_from("<Q", data, start)
        if start + size + 16 > len(data):
            return
        yield data[start + 12 : start + 12 + size]
        start += size + 16


def _line(record: Record) -> bytes:
    return json.dumps(record, separators=(",", ":")).encode() + b"\n"
