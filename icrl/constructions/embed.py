"""A construction as the beginning of training: its weights inside a larger, dense transformer of the theory preset."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from icrl.model import FactoredBlock, TheoryBlock, Transformer


def embed(
    construction: Transformer,
    *,
    layers: int | None = None,
    heads: int | None = None,
    mlp_dim: int | None = None,
    embed_dim: int | None = None,
    noise: float = 0.0,
    seed: int = 0,
) -> Transformer:
    """The same function in dense, trainable layers, with room beside it. Sizes left out are the construction's.

    Fields, logits and scratch keep their coordinates, new ones follow them, the position stays last. Heads, neurons and
    layers that the construction does not take start as those of an untrained transformer of this `seed` (Q, K, W_1),
    but what they write (V, W_2) is `noise` times that: at 0 the function is unchanged, bit for bit where sums are
    taken in the same order, and the new parts have gradients from the first step all the same.

    Raises:
        ValueError: not a transformer in factors, or a size that does not hold the construction; names both.
    """
    if not all(isinstance(block, FactoredBlock) for block in construction.blocks):
        raise ValueError("embed: expected a construction of icrl.constructions, got a transformer with dense layers")
    if not noise >= 0:
        raise ValueError(f"noise = {noise}: expected a number >= 0")
    own = construction.config
    asked = {"layers": layers, "heads": heads, "mlp_dim": mlp_dim, "embed_dim": embed_dim}
    sizes: dict[str, Any] = {name: getattr(own, name) if v is None else v for name, v in asked.items()}
    for name, value in sizes.items():
        if value < getattr(own, name):
            raise ValueError(f"{name} = {value}: expected at least the construction's {getattr(own, name)}")
    model = Transformer(dataclasses.replace(own, **sizes), construction.environment, seed=seed).to(construction.dtype)
    places = _places(own.embed_dim, sizes["embed_dim"], construction.tokenizer.position_width)
    with torch.no_grad():
        for layer, block in enumerate(model.blocks):
            assert isinstance(block, TheoryBlock)
            block.value.mul_(noise)
            block.mlp_out.mul_(noise)
            if layer < own.layers:
                _write(construction.get_submodule(f"blocks.{layer}"), block, places)
    return model


def hold_positions(model: Transformer) -> None:
    """From now on no gradient reaches what reads the position, but for its constant 1 (preset theory).

    Gates cancel i^2 exactly: an optimiser that moves such a weight by 1e-5 moves scores by (2T)^2 1e-5 and breaks
    every gate. ValueError with another preset.
    """
    if model.config.preset != "theory":
        raise ValueError(f"model.preset = {model.config.preset}: expected theory, only its tokens hold their position")
    held = slice(-model.tokenizer.position_width, -1)
    for block in model.blocks:
        assert isinstance(block, TheoryBlock)
        for weight in (block.query, block.key, block.value, block.mlp_in):
            weight.register_hook(lambda gradient: _without(gradient, held))  # type: ignore[no-untyped-call]


def _without(gradient: Tensor, held: slice) -> Tensor:
    out = gradient.clone()
    out[..., held] = 0
    return out


def _places(narrow: int, wide: int, position: int) -> Tensor:
    """Where the coordinates of a narrow token lie in a wide one: all but the position at the front."""
    front = torch.arange(narrow - position)
    return torch.cat([front, torch.arange(wide - position, wide)])


def _write(source: torch.nn.Module, block: TheoryBlock, places: Tensor) -> None:
    """The heads and neurons of `source` over the first ones of `block`."""
    assert isinstance(source, FactoredBlock)
    dense, heads, neurons = source.dense(), source.heads, source.mlp_dim
    rows, columns = places[:, None], places[None, :]
    for name in ("query", "key", "value"):
        matrix, narrow = getattr(block, name), getattr(dense, name)
        matrix[:heads] = 0
        for head in range(heads):
            # rows of Q and K are scores' terms, not coordinates: only V's are moved
            matrix[head][rows if name == "value" else torch.arange(len(places))[:, None], columns] = narrow[head]
    block.mlp_in[:neurons] = 0
    block.mlp_in[:neurons, places] = dense.mlp_in[:neurons]
    block.mlp_out[:, :neurons] = 0
    block.mlp_out[places, :neurons] = dense.mlp_out[:, :neurons]
