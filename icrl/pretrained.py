"""Portable weights: a transformer from a directory or an object store, and back."""

from __future__ import annotations

from pathlib import Path

import icrl.checkpoint
from icrl.model import Transformer
from icrl.store.place import dataset_place, make_directory, write


def from_pretrained(place: str | Path) -> Transformer:
    """The transformer in a run directory or an exported one, or at s3://bucket/prefix; on the CPU, in its dtype.

    Its sum is checked, and nothing in the file is executed.

    Raises:
        ValueError: there is no model, or it is damaged; names the file.
        OSError: the object store does not answer, or refuses.
    """
    path = dataset_place(str(place), "place") / icrl.checkpoint.WEIGHTS
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(
            f"{path}: no such file; expected the directory of a trained run, or an exported model"
        ) from None
    return icrl.checkpoint.decode(data, path)


def save_pretrained(model: Transformer, place: str | Path) -> None:
    """Write `model.json` and `model.safetensors` where `from_pretrained` finds them.

    Raises:
        ValueError: there is a model already, or the place is no place.
        OSError: the disk or the object store refuses.
    """
    folder = dataset_place(str(place), "place")
    if (folder / icrl.checkpoint.WEIGHTS).exists():
        raise ValueError(f"{folder} holds a model already: choose another place")
    make_directory(folder)
    for name, data in icrl.checkpoint.encode(model).items():
        write(folder / name, data)
