"""A layer of the practical preset.

Shapes: B trajectories, T rounds, A actions, d dim, N tokens, D embed_dim, M heads, Dh width of a head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from icrl.attention import KVCache, attention, relu_attention_qkvpacked
from icrl.config import ModelConfig
from icrl.model.fused import fused_block, refusal
from icrl.model.initial import normal


class PracticalBlock(nn.Module):
    """h + Attn(LN(h)), then h + MLP(LN(h)): pre-LN, low-dimensional heads, output projection, biases, ReLU MLP.

    The norm stands before each part, off the residual path: it trains without warm-up tricks at every depth. Scores are
    divided by sqrt(Dh) with either attention, so that they start at unit size.

    `forward` is the composition of its parts, and the specification of the fused block that computes it on CPUs in
    float32; on a GPU the composition wants torch.compile around the attention kernel.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        width = config.embed_dim
        self.layer, self.heads, self.kind = layer, config.heads, config.attention
        self.share = 1 / math.sqrt(2 * config.layers)
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, config.mlp_dim)
        self.mlp_out = nn.Linear(config.mlp_dim, width)

    def reset(self, generator: torch.Generator) -> None:
        """Weights of variance 1/fan_in; what writes to the residual stream shares that variance among all 2L parts."""
        for part in (self.qkv, self.output, self.mlp_in, self.mlp_out):
            normal(part, 1 / math.sqrt(part.in_features), generator)
        with torch.no_grad():
            self.output.weight *= self.share
            self.mlp_out.weight *= self.share

    def forward(self, h_BND: Tensor, cache: KVCache | None) -> Tensor:
        parts = (self.attention_norm, self.qkv, self.output, self.mlp_norm, self.mlp_in, self.mlp_out)
        if cache is None and self.kind == "relu" and refusal(h_BND, parts, self.heads) is None:
            return fused_block(h_BND, parts, self.heads)
        batch, n_tokens, width = h_BND.shape
        qkv = self.qkv(self.attention_norm(h_BND)).view(batch, n_tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        scale = (width // self.heads) ** -0.5
        if cache is not None:
            mixed = cache.append_and_attend(self.layer, q, k, v, scale)
        elif self.kind == "relu":  # whose gradient is one tensor, nothing puts three together
            mixed = relu_attention_qkvpacked(qkv, scale=scale)
        else:
            mixed = attention(q, k, v, self.kind, scale)
        h_BND = h_BND + self.output(mixed.transpose(1, 2).reshape(batch, n_tokens, width))
        out: Tensor = h_BND + self.mlp_out(torch.relu(self.mlp_in(self.mlp_norm(h_BND))))
        return out
