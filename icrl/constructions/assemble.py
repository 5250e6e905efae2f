"""Layers into a `Transformer` that knows what its tokens hold."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from icrl.config import EnvironmentConfig, ModelConfig
from icrl.constructions.layer import Layer
from icrl.constructions.stream import Stream
from icrl.model import FactoredBlock, Transformer


@dataclass(frozen=True)
class Report:
    """The sizes of a construction beside those of its theorem."""

    method: str
    layers: int
    """L."""
    heads: int
    """M, the most of any layer."""
    embed_dim: int
    """D."""
    mlp_dim: int
    """D', the most of any layer."""
    nonzeros: int
    """Entries of the factors that are not 0."""
    operator_norm: float
    """|||theta|||."""
    choices: Mapping[str, float]
    """What the sizes follow from: layers of a solver, knots, constants of the gates."""
    theorem: Mapping[str, float]
    """The theorem's own formulae with these arguments."""


class Construction(Transformer):
    """A transformer with weights written down; `stream` names the blocks of its tokens, `report` its sizes."""

    stream: Stream
    report: Report


def assemble(
    environment: EnvironmentConfig,
    layers: Iterable[Layer],
    dtype: torch.dtype = torch.float64,
    *,
    method: str = "paper",
    choices: Mapping[str, float] | None = None,
    theorem: Mapping[str, float] | None = None,
) -> Construction:
    """The transformer of these layers; its config holds L, D and the largest M and D'. A layer may be repeated.

    Weights are written in float64 and cast to `dtype` last.
    """
    blocks: list[FactoredBlock] = []
    built: dict[Layer, FactoredBlock] = {}
    slot = 0
    for layer in layers:
        if layer in built:
            block = copy.deepcopy(built[layer])
            block.slot = slot
        else:
            block = built[layer] = layer.build(slot)
        slot += len(block.groups)
        blocks.append(block)
    stream = next(iter(built)).stream
    config = ModelConfig(
        preset="theory",
        layers=len(blocks),
        heads=max(1, *(block.heads for block in built.values())),
        embed_dim=stream.width,
        mlp_dim=max(1, *(block.mlp_dim for block in built.values())),
    )
    model = Construction(config, environment, blocks=blocks)
    model.stream = stream
    model.report = Report(
        method=method,
        layers=config.layers,
        heads=config.heads,
        embed_dim=config.embed_dim,
        mlp_dim=config.mlp_dim,
        nonzeros=model.num_parameters()["total"],
        operator_norm=max(block.operator_norm() for block in built.values()),
        choices=choices or {},
        theorem=theorem or {},
    )
    return model.to(dtype)
