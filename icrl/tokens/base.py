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
    def prediction(self) -> slice | Tensor:
        """The tokens whose outputs are the logits of rounds 1..T, as an index of the token axis."""
        ...

    def encode(self, shown: Tensor, action: Tensor, reward: Tensor) -> Tensor:
        """Raw fields [B,N,w] of action int [B,T] and reward [B,T], up to the prediction of the last round at least."""
        ...

    def step(self, shown: Tensor, previous: tuple[Tensor, Tensor] | None, first: int) -> Tensor:
        """The tokens [B,n,w] that a round adds up to its prediction, after `first` others.

        `previous` = (action [B], reward [B]) of the round before; None on the first.
        """
        ...

    def position(self, first: int, n_tokens: int, like: Tensor) -> Tensor:
        """pos_i of the tokens after the first `first`, [n_tokens,position_width]."""
        ...


def indices(first: int, n_tokens: int, like: Tensor) -> Tensor:
    """i = first + 1 .. first + n_tokens in the dtype and on the device of `like`."""
    return torch.arange(first + 1, first + n_tokens + 1, device=like.device).to(like.dtype)
