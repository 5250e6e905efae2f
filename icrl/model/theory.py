"""A layer of the theory preset: Def 1-3 exactly.

Shapes: B trajectories, T rounds, A actions, d dim, N tokens, D embed_dim, M heads, Dh width of a head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from icrl.attention import MAX_WIDTH, KVCache, relu_attention
from icrl.config import ModelConfig


class TheoryBlock(nn.Module):
    """Def 1-3: h_i += sum_m (1/i) sum_{j <= i} relu(<Q_m h_i, K_m h_j>) V_m h_j; h_i += W_2 relu(W_1 h_i); clip_R.

    Q, K, V [M,D,D], W_1 [D',D], W_2 [D,D']: no scale, no output matrix, no bias, no LayerNorm. ValueError for an
    embed_dim that no attention takes as the width of a head.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        width = config.embed_dim
        if width > MAX_WIDTH:
            raise ValueError(
                f"model.embed_dim = {width}: expected at most {MAX_WIDTH} with model.preset = theory, whose heads are "
                "as wide as the model; model.preset = practical divides the width among model.heads"
            )
        self.layer, self.radius = layer, config.clip_norm
        self.share = 1 / math.sqrt(2 * config.layers)
        self.query, self.key, self.value = (nn.Parameter(torch.empty(config.heads, width, width)) for _ in range(3))
        self.mlp_in = nn.Parameter(torch.empty(config.mlp_dim, width))
        self.mlp_out = nn.Parameter(torch.empty(width, config.mlp_dim))

    def reset(self, generator: torch.Generator) -> None:
        """As the practical block, but nothing reads i and i^2 at first: they dwarf every other entry."""
        width, inner = self.mlp_out.shape
        with torch.no_grad():
            for matrix in (self.query, self.key):
                matrix.normal_(0, 1 / math.sqrt(width), generator=generator)
            self.value.normal_(0, self.share / math.sqrt(width * self.value.shape[0]), generator=generator)
            self.mlp_in.normal_(0, 1 / math.sqrt(width), generator=generator)
            self.mlp_out.normal_(0, self.share / math.sqrt(inner), generator=generator)
            for matrix in (self.query, self.key, self.value, self.mlp_in):
                matrix[..., -3:-1] = 0

    def forward(self, h_BND: Tensor, cache: KVCache | None) -> Tensor:
        q, k, v = (self._heads(h_BND, matrix) for matrix in (self.query, self.key, self.value))
        mixed = relu_attention(q, k, v) if cache is None else cache.append_and_attend(self.layer, q, k, v)
        h_BND = h_BND + mixed.sum(1)
        h_BND = h_BND + linear(torch.relu(linear(h_BND, self.mlp_in)), self.mlp_out)
        return clip(h_BND, self.radius)

    @staticmethod
    def _heads(h_BND: Tensor, matrix_MDD: Tensor) -> Tensor:
        """X_m h_i for every head, [B,M,N,D]."""
        return torch.matmul(h_BND.unsqueeze(1), matrix_MDD.transpose(1, 2))

    @torch.no_grad()
    def operator_norm(self) -> float:
        """max_m max(|Q_m|, |K_m|) + sum_m |V_m| + |W_1| + |W_2|, spectral norms."""
        query, key, value = (torch.linalg.matrix_norm(x.double(), 2) for x in (self.query, self.key, self.value))
        mlp = torch.linalg.matrix_norm(self.mlp_in.double(), 2) + torch.linalg.matrix_norm(self.mlp_out.double(), 2)
        return float(torch.maximum(query, key).max() + value.sum() + mlp)


def clip(h_BND: Tensor, radius: float | None) -> Tensor:
    """clip_R (Def 3): every token onto the ball of this radius; None never binds."""
    if radius is None:
        return h_BND
    norm: Tensor = torch.linalg.vector_norm(h_BND, dim=-1, keepdim=True)
    return h_BND * (radius / norm.clamp(min=radius))  # at a norm of 0, too, with a gradient
