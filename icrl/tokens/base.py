"""What a layout of tokens is, whatever the environment.

The token that predicts round t sees D_{t-1} and what the environment shows before it, nothing of round t itself: action
and reward of round t enter with a later token. Encoding round by round gives the same bits as encoding the whole
trajectory.

Shapes: B trajectories, T rounds, N tokens, w width of the raw fields.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor

Kind = Literal["paper", "onehot", "merged"]


class Tokenizer(Protocol):
    """One layout of a trajectory. `shown` is what the environment shows: the action set float [B,A,d] of a bandit, the
    states int [B,T] of an MDP (of one round: [B])."""

    kind: Kind
    horizon: int
    width: int
    """w."""
    n_tokens: int
    """N of a whole trajectory."""
    position_width: int
    """Width of pos_i."""

    @property
    def tokens_per_round(self) -> int | None:
        """Tokens that a round adds; None where rounds differ."""
        ...

    @property
    def prediction(self) -> slice | Tensor:
        """The tokens whose outputs are the logits of rounds 1..T, as an index of the token axis."""
        ...

    def encode(self, shown: Tensor, action: Tensor, reward: Tensor) -> Tensor:
        """Raw fields [B,N,w] of action int [B,T] and reward [B,T], up to the prediction of the last round at least."""
        ...

    def step(self, shown: Tensor, previous: tuple[Tensor, Tensor] | None, first: int | Tensor) -> Tensor:
        """The tokens [B,n,w] that a round adds up to its prediction, after `first` others, int [B] where that differs.

        `previous` = (action [B], reward [B]) of the round before; None on the first.
        """
        ...

    def position(self, first: int | Tensor, n_tokens: int, like: Tensor) -> Tensor:
        """pos_i of the tokens after `first` others, [n_tokens,position_width], or [B,...] of `first` [B]."""
        ...


def positions(first: int | Tensor, n_tokens: int, device: torch.device) -> Tensor:
    """Positions from 0 of n tokens after `first`: int64 [n], or [B,n] of `first` [B], 0 where it lies before."""
    index = torch.arange(n_tokens, device=device)
    return index + first if isinstance(first, int) else (index + first.unsqueeze(1)).clamp(min=0)


def indices(first: int | Tensor, n_tokens: int, like: Tensor) -> Tensor:
    """i = position + 1, in the dtype and on the device of `like`."""
    return (positions(first, n_tokens, like.device) + 1).to(like.dtype)
