"""|||theta||| of any transformer here (Def 3), and what stands in for it where LayerNorm does.

Shapes: D embed_dim, D' mlp_dim, M heads, Dh width of a head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from icrl.model import FactoredBlock, PracticalBlock, TheoryBlock, Transformer
from icrl.model.frames import PracticalFrame

DEFINITION_3 = "Q, K, V, W_1, W_2 of Def 3"
PRACTICAL = "Q, K, V, W_1, W_2 that act on (n(h); 1), n(h) the token before LayerNorm's gain, and the ends"


@dataclass(frozen=True)
class Norm:
    """A norm of the weights, and of what."""

    value: float
    """max of the layers, and with preset practical of the ends."""
    layers: tuple[float, ...]
    """max_m max(|Q_m|, |K_m|) + sum_m |V_m| + |W_1| + |W_2| of every layer; with preset practical + |output bias|."""
    ends: tuple[float, ...]
    """Preset practical: |embedding| + the largest |position|, and |read-out|. Preset theory has no such weights."""
    what: str
    """Of which matrices."""


@torch.no_grad()
def operator_norm(model: Transformer) -> Norm:
    """The norm of Def 3, all norms spectral and computed in float64.

    With preset practical the definition does not apply as it stands: LayerNorm divides every token by its own size.
    What is left is linear, and is folded into the matrices of Def 3: with n(h) = (h - mean) / sqrt(var + eps), Q_m, K_m
    [Dh,D+1] and V_m [D,D+1] act on (n(h); 1), gain, biases, output projection and 1/sqrt(Dh) (its root on either side)
    included. The norm of those is measured, and said to be of those.
    """
    layers = [_layer(block) for block in model.blocks]
    if isinstance(model.frame, PracticalFrame):
        ends = _ends(model.frame)
        return Norm(max(*layers, *ends), tuple(layers), ends, PRACTICAL)
    return Norm(max(layers), tuple(layers), (), DEFINITION_3)


def _layer(block: nn.Module) -> float:
    if isinstance(block, TheoryBlock | FactoredBlock):
        return block.operator_norm()
    assert isinstance(block, PracticalBlock), type(block)
    width, heads = block.output.in_features, block.heads
    rows = folded(block.qkv, block.attention_norm).view(3, heads, width // heads, width + 1)
    scale = math.pow(width // heads, -0.25)
    score = scale * float(torch.maximum(_norms(rows[0]), _norms(rows[1])).max())
    out = block.output.weight.double().view(width, heads, width // heads).transpose(0, 1)
    value = float(_norms(out @ rows[2]).sum())
    inner, outer = folded(block.mlp_in, block.mlp_norm), _with_bias(block.mlp_out)
    return score + value + float(_norms(inner)) + float(_norms(outer)) + _length(block.output.bias)


def _ends(frame: PracticalFrame) -> tuple[float, float]:
    position = float(torch.linalg.vector_norm(frame.position.double(), dim=1).max())
    enter = float(_norms(_with_bias(frame.embedding))) + position
    return enter, float(_norms(folded(frame.read_out, frame.final_norm)))


def folded(linear: nn.Linear, norm: nn.LayerNorm) -> Tensor:
    """[out,D+1]: the linear map after the norm, as a map of (n(h); 1)."""
    weight = linear.weight.double()
    constant = weight @ norm.bias.double() + linear.bias.double()
    return torch.cat([weight * norm.weight.double(), constant[:, None]], 1)


def _with_bias(linear: nn.Linear) -> Tensor:
    return torch.cat([linear.weight, linear.bias[:, None]], 1).double()


def _norms(matrix: Tensor) -> Tensor:
    found: Tensor = torch.linalg.matrix_norm(matrix, 2)
    return found


def _length(vector: Tensor) -> float:
    return math.sqrt(float(vector.double().square().sum()))
