"""What stands around the layers: raw fields into the residual stream, and the stream into logits.

Shapes: B trajectories, T rounds, A actions, d dim, N tokens, D embed_dim, M heads, Dh width of a head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from icrl.config import EnvironmentConfig, ModelConfig
from icrl.model.initial import normal
from icrl.model.theory import clip
from icrl.tokens import TheoryLayout, Tokenizer, positions


class PracticalFrame(nn.Module):
    """Into and out of the residual stream: linear embedding, learned positions, final norm, linear read-out."""

    def __init__(self, config: ModelConfig, environment: EnvironmentConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.embedding = nn.Linear(tokenizer.width, config.embed_dim)
        self.position = nn.Parameter(torch.empty(tokenizer.n_tokens, config.embed_dim))
        self.final_norm = nn.LayerNorm(config.embed_dim)
        self.read_out = nn.Linear(config.embed_dim, environment.n_actions)

    def reset(self, generator: torch.Generator) -> None:
        """A small read-out, so that the first policy is near uniform."""
        normal(self.embedding, 1 / math.sqrt(self.embedding.in_features), generator)
        normal(self.read_out, 0.02, generator)
        with torch.no_grad():
            self.position.normal_(0, 0.02, generator=generator)

    def enter(self, fields_BNw: Tensor, first: int | Tensor) -> Tensor:
        """Residual stream [B,N,D] of raw fields; `first` tokens came before, int [B] where that differs."""
        embedded: Tensor = self.embedding(fields_BNw)
        return embedded + self.position[positions(first, fields_BNw.shape[1], fields_BNw.device)]

    def leave(self, h_BTD: Tensor) -> Tensor:
        """Logits [B,T,A]."""
        logits: Tensor = self.read_out(self.final_norm(h_BTD))
        return logits


class TheoryFrame(nn.Module):
    """Fixed token blocks in, the logit block out: no parameters. ValueError when embed_dim cannot hold the blocks."""

    def __init__(self, config: ModelConfig, environment: EnvironmentConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.layout = TheoryLayout(tokenizer, environment.n_actions, config.embed_dim)
        self.radius = config.clip_norm

    def reset(self, generator: torch.Generator) -> None:
        """Nothing to draw."""

    def enter(self, fields_BNw: Tensor, first: int | Tensor) -> Tensor:
        """clip_R of the tokens [B,N,D]; `first` tokens came before, int [B] where that differs."""
        return clip(self.layout.place(fields_BNw, first), self.radius)

    def leave(self, h_BTD: Tensor) -> Tensor:
        """Logits [B,T,A]."""
        return h_BTD[..., self.layout.logits]
