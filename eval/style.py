"""How every figure looks and is written, without pyplot's global state: the same numbers give the same bytes."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from icrl.files import atomic_write

INK, QUIET = "#1a1a1a", "#666666"
PALETTE = ("#117733", "#AA4499", "#999933", "#44AA99", "#332288", "#882255")
"""From Okabe and Ito's palette and Tol's muted one: told apart with the common colour-vision deficiencies."""
_SETTINGS = {
    "svg.hashsalt": "icrl",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.unicode_minus": True,
}


def settings() -> contextlib.AbstractContextManager[None]:
    """The figures' settings while the block runs; the caller's matplotlib stays as it was."""
    return matplotlib.style.context(["default", _SETTINGS])


def plain(axes: Axes) -> None:
    """Grid, spines and ticks of a panel."""
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#999999")
    axes.tick_params(colors=QUIET, which="both", labelsize=8)


def write(figure: Figure, csv: bytes, directory: Path, stem: str) -> list[Path]:
    """Write <stem>.png, <stem>.svg and the numbers as <stem>.csv to the directory, each atomically."""
    directory.mkdir(exist_ok=True)
    paths = []
    for suffix, content in {"png": _rendered(figure, "png"), "svg": _rendered(figure, "svg"), "csv": csv}.items():
        path = directory / f"{stem}.{suffix}"
        atomic_write(path, content)
        paths.append(path)
    return paths


def _rendered(figure: Figure, suffix: str) -> bytes:
    buffer = io.BytesIO()
    metadata = {"Date": None} if suffix == "svg" else {"Software": None}
    figure.savefig(buffer, format=suffix, dpi=160, metadata=metadata)
    return buffer.getvalue()
