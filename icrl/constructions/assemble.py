"""Layers into a `Transformer`."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch

from icrl.config import EnvironmentConfig, ModelConfig
from icrl.constructions.layer import Layer
from icrl.model import FactoredBlock, Transformer


def assemble(
    environment: EnvironmentConfig, layers: Iterable[Layer], dtype: torch.dtype = torch.float64
) -> Transformer:
    """The transformer of these layers; its config holds L, D and the largest M and D'. A layer may be repeated.

    Weights are written in float64 and cast to `dtype` last.
    """
    blocks: list[FactoredBlock] = []
    slot = 0
    width = 0
    built: dict[Layer, FactoredBlock] = {}
    for layer in layers:
        if layer in built:
            block = copy.deepcopy(built[layer])
            block.slot = slot
        else:
            block = built[layer] = layer.build(slot)
        slot += len(block.groups)
        width = layer.stream.width
        blocks.append(block)
    config = ModelConfig(
        preset="theory",
        layers=len(blocks),
        heads=max(1, *(block.heads for block in blocks)),
        embed_dim=width,
        mlp_dim=max(1, *(block.mlp_dim for block in blocks)),
    )
    return Transformer(config, environment, blocks=blocks).to(dtype).requires_grad_(False)
