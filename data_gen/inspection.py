"""What a dataset holds, in figures: the statistics that `inspect` adds to its card.

Shapes: B trajectories of the sample, T rounds, A actions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

import icrl.envs
from icrl.config import Config
from icrl.files import size_text
from icrl.ratio import ratio_lines
from icrl.store import SPLITS, Place, SplitReader, geometry_for, read_provenance, recipe_config
from icrl.streams import Split

SAMPLE = 2048
"""Most trajectories that are looked at."""
_ROUNDS = 2_000_000
"""Most rounds of the sample, so that long horizons do not take minutes."""
_BLOCK = 256
_REPLAYED = 256
"""Most trajectories that are replayed for the distribution ratios."""
_BARS = 40
_ACTIONS = 16


@dataclass(frozen=True)
class Sample:
    """The first B trajectories of a split; they are i.i.d. in their index, so the first are as good as any."""

    config: Config
    reader: SplitReader
    arrays: dict[str, npt.NDArray[Any]]
    """Everything stored: [B, *row_shape] each."""
    suboptimality: npt.NDArray[np.float32]
    """float32[B, T]: free of noise (`icrl.envs.Interaction`); its cumulative sum is the regret."""

    @property
    def size(self) -> int:
        """B."""
        return len(self.suboptimality)


def inspect(dataset: Place, split: str = "train") -> list[str]:
    """The lines of the summary, from a sample of one split.

    Raises:
        ValueError: no dataset, an incomplete or damaged one, or one of another version.
    """
    reader = SplitReader(dataset, split)
    if reader.n == 0:
        raise ValueError(f"{dataset} holds no trajectories in split {split}")
    sample = _sample(recipe_config(dataset, reader.recipe), reader)
    lines: list[str] = []
    for section in SECTIONS:
        lines += ["", *section(sample)]
    return lines


def _sample(config: Config, reader: SplitReader) -> Sample:
    size = min(reader.n, SAMPLE, max(2, _ROUNDS // config.environment.horizon))
    arrays = reader.rows(slice(0, size))
    played = [
        replayed(config, reader.split, np.arange(first, min(first + _BLOCK, size)), arrays["action"])
        for first in range(0, size, _BLOCK)
    ]
    return Sample(config, reader, arrays, np.concatenate(played))


def replayed(
    config: Config, split: str, rows: npt.NDArray[np.int64], action: npt.NDArray[np.uint8]
) -> npt.NDArray[np.float32]:
    """float32[len(rows), T]: what the stored actions uint8[B, T] of these rows gave away in their environments.

    The environments are made again and the actions played in them; noise and transitions are those of the data.
    """
    key = Split[split.upper()]
    batch = icrl.envs.sample(config.environment, config.dataset.seed, key, rows)
    interaction = icrl.envs.interact(config.environment, batch, config.dataset.seed, key)
    out = np.empty((len(rows), action.shape[1]), np.float32)
    for t in range(action.shape[1]):
        interaction.observe()
        chosen = action[rows, t].astype(np.int64)
        out[:, t] = interaction.suboptimality(chosen)
        interaction.step(chosen)
    return out


def provenance(sample: Sample) -> list[str]:
    """Where it was made: of the versions that wrote its first files."""
    made = read_provenance(sample.reader.dataset, sample.reader.split) or {}
    packages = ", ".join(f"{name} {version}" for name, version in made.get("packages", {}).items())
    return [f"made by         commit {made.get('commit') or '(unknown)'}; {packages or 'versions unknown'}"]


def sizes(sample: Sample) -> list[str]:
    """Trajectories, shards and bytes of each split."""
    lines = []
    for split in SPLITS:
        geometry = geometry_for(sample.reader.specs, sample.reader.recipe["sizes"][split])
        size = sum(geometry.shard_bytes(spec, k) for spec in sample.reader.specs for k in range(geometry.n_shards))
        lines.append(f"{split:<16}{geometry.n:,} trajectories in {geometry.n_shards:,} shards, {size_text(size)}")
    return lines


def mixture(sample: Sample) -> list[str]:
    """How often each component of the context's mixture acted, against its weight."""
    source, context = sample.arrays["source"], sample.config.context
    total = sum(component.weight for component in context)
    return [f"source          of {sample.size:,} trajectories of {sample.reader.split}"] + [
        f"  {i} {component.algorithm.algorithm:<15}{np.mean(source == i):7.4f}  weight {component.weight / total:.4f}"
        for i, component in enumerate(context)
    ]


def regret(sample: Sample) -> list[str]:
    """Regret without noise at a few rounds, mean and standard error, of the whole context and of each component."""
    T = sample.suboptimality.shape[1]
    rounds = sorted({max(1, round(T * share)) for share in (0.02, 0.1, 0.25, 0.5, 0.75, 1.0)})
    cumulative = np.cumsum(sample.suboptimality, axis=1, dtype=np.float64)[:, np.array(rounds) - 1]
    source, context = sample.arrays["source"], sample.config.context
    groups = [("context", cumulative)]
    if len(context) > 1:
        groups += [(f"{i} {c.algorithm.algorithm}", cumulative[source == i]) for i, c in enumerate(context)]
    lines = ["regret at t     " + "".join(f"{t:>18,}" for t in rounds)]
    for name, values in groups:
        if len(values) > 1:
            errors = values.std(axis=0, ddof=1) / math.sqrt(len(values))
            cells = "".join(f"{f'{m:.3f} ± {e:.3f}':>18}" for m, e in zip(values.mean(axis=0), errors, strict=True))
            lines.append(f"  {name:<14}{cells}")
    return lines


def actions(sample: Sample) -> list[str]:
    """How often each action was played, and how often it gave nothing away."""
    played = sample.arrays["action"]
    shares = np.bincount(played.ravel(), minlength=sample.config.environment.n_actions) / played.size
    shown = np.sort(np.argsort(-shares, kind="stable")[:_ACTIONS])
    lines = [f"actions         optimal in {np.mean(sample.suboptimality == 0):.4f} of the rounds"]
    lines += [f"  {a:<4}{shares[a]:7.4f} {'#' * round(_BARS * shares[a] / shares.max())}" for a in shown]
    if len(shares) > len(shown):
        lines.append(f"  the {len(shares) - len(shown)} others: {1 - shares[shown].sum():.4f}")
    return lines


def ratios(sample: Sample) -> list[str]:
    """The estimated distribution ratio (Def 5) of each expert to the context, with its effective sample size."""
    lines = ratio_lines(sample.config, sample.reader, min(_REPLAYED, sample.size))
    return ["ratio to experts", *(f"  {line}" for line in lines)]


SECTIONS: tuple[Callable[[Sample], list[str]], ...] = (provenance, sizes, mixture, regret, actions, ratios)
"""The parts of the summary, in order; a new one is a function of the sample and a place here."""
