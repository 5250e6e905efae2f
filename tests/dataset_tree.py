"""A dataset as bytes, for comparing two of them file by file."""

from __future__ import annotations

import json
from pathlib import Path

from icrl.store import SPLITS


def dataset_tree(dataset: Path) -> dict[str, bytes]:
    """Every file that a dataset's recipe decides: all but the lock and the splits' provenance."""
    files = {str(path.relative_to(dataset)): path.read_bytes() for path in sorted(dataset.rglob("*")) if path.is_file()}
    files.pop(".lock")
    for split in SPLITS:
        group = json.loads(files[f"{split}.zarr/zarr.json"])
        del group["attributes"]["provenance"]
        files[f"{split}.zarr/zarr.json"] = json.dumps(group).encode()
    return files
