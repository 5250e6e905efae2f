"""The theory preset's blocks of a token.

Shapes: B trajectories, N tokens, w width of the raw fields, A actions, D embed_dim.
"""

from __future__ import annotations

from torch import Tensor

from icrl.tokens.base import Tokenizer


def required_width(tokenizer: Tokenizer, n_actions: int) -> int:
    """Smallest embed_dim that holds the theory preset's blocks: raw fields, A outputs, positions."""
    return tokenizer.width + n_actions + tokenizer.position_width


class TheoryLayout:
    """Blocks [raw fields w | logits A | scratch | pos] of a token of width D = embed_dim.

    With `paper` tokens these are the blocks a | b | c | d of the constructions. ValueError when D cannot hold them.
    """

    def __init__(self, tokenizer: Tokenizer, n_actions: int, embed_dim: int) -> None:
        needed = required_width(tokenizer, n_actions)
        if embed_dim < needed:
            raise ValueError(
                f"model.embed_dim = {embed_dim}: expected at least {needed} for preset theory, {tokenizer.kind} tokens "
                f"of {tokenizer.width} fields and {n_actions} actions; set model.embed_dim={needed}"
            )
        self.embed_dim = embed_dim
        self.logits = slice(tokenizer.width, tokenizer.width + n_actions)
        self.scratch = slice(self.logits.stop, embed_dim - tokenizer.position_width)
        self.position = slice(embed_dim - tokenizer.position_width, embed_dim)
        self._tokenizer = tokenizer

    def place(self, fields: Tensor, first: int | Tensor) -> Tensor:
        """Tokens [B,n,D] of raw fields [B,n,w]; `first` came before, int [B] where that differs."""
        batch, n_tokens, width = fields.shape
        out = fields.new_zeros(batch, n_tokens, self.embed_dim)
        out[..., :width] = fields
        out[..., self.position] = self._tokenizer.position(first, n_tokens, fields)
        return out
