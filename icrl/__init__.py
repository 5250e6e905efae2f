"""The science: environments, algorithms, rollouts, attention, the transformer, and the two contracts on disk.

Knows neither Ray nor DeepSpeed. The stages (`data_gen`, `train`, `eval`) meet here and never import each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from icrl.model import Transformer


def from_pretrained(place: str | Path) -> Transformer:
    """The transformer in a run directory, or at s3://bucket/prefix (`icrl.pretrained.from_pretrained`)."""
    from icrl import pretrained  # not before it is needed: a config error answers at once

    return pretrained.from_pretrained(place)
