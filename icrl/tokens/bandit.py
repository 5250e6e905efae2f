"""Bandit trajectories as tokens: the three layouts, and which token predicts which round.

Shapes: B trajectories, T rounds, A actions, d dim, N tokens, w width of the raw fields.
"""

from __future__ import annotations

import torch
from torch import Tensor

from icrl.config import BanditConfig
from icrl.tokens.base import Kind, indices


def fields_width(environment: BanditConfig, tokens: Kind) -> int:
    """w, the width of a token's raw fields."""
    dim, n_actions = environment.dim, environment.n_actions
    match tokens:
        case "paper":
            return dim + 1 + n_actions * dim
        case "onehot":
            return n_actions * dim + n_actions + 2
        case "merged":
            return n_actions * dim + n_actions + dim + 2


class BanditTokenizer:
    """One layout of a trajectory.

    paper: h_{2t-1} = [0_{d+1} | a_1; ...; a_A], h_{2t} = [a_t; r_t | 0_{Ad}] (section 2.1 of the theory).
    onehot: h_{2t-1} = [a_1; ...; a_A | 0_A | 0 | 1], h_{2t} = [0_{Ad} | one-hot a_t | r_t | 1].
    merged: h_t = [a_1; ...; a_A | one-hot a_{t-1} | a_{t-1} | r_{t-1} | 1 at t = 1].
    """

    def __init__(self, environment: BanditConfig, kind: Kind) -> None:
        self.kind: Kind = kind
        self.dim, self.n_actions, self.horizon = environment.dim, environment.n_actions, environment.horizon
        self.tokens_per_round = 1 if kind == "merged" else 2
        self.width = fields_width(environment, kind)
        self.n_tokens = self.horizon * self.tokens_per_round
        self.position_width = 3

    @property
    def prediction(self) -> slice:
        """The tokens whose outputs are the logits of rounds 1..T."""
        return slice(0, None, self.tokens_per_round)

    def encode(self, action_set: Tensor, action: Tensor, reward: Tensor) -> Tensor:
        """Raw fields [B,N,w] of action_set [B,A,d], action int [B,T] and reward [B,T], in the dtype of `action_set`."""
        if self.kind == "merged":
            first = self._start(action_set)
            later = self._played(action_set, action[:, :-1], reward[:, :-1])
            return torch.cat([first, later], dim=1)
        asked = self._start(action_set).expand(-1, action.shape[1], -1)
        return torch.stack([asked, self._played(action_set, action, reward)], dim=2).flatten(1, 2)

    def step(self, action_set: Tensor, previous: tuple[Tensor, Tensor] | None, first: int | Tensor) -> Tensor:
        """The tokens [B,n,w] that round t adds up to its prediction; `previous` = (action [B], reward [B]) of t - 1.

        Where `first`, int [B], is 0, `previous` means nothing: only the last of the n tokens is one, that of round 1.
        """
        if previous is None:
            return self._start(action_set)
        action, reward = previous
        played = self._played(action_set, action[:, None], reward[:, None])
        if self.kind != "merged":
            return torch.cat([played, self._start(action_set)], dim=1)
        if isinstance(first, int):
            return played
        return torch.where((first == 0)[:, None, None], self._start(action_set), played)

    def _start(self, action_set: Tensor) -> Tensor:
        """The token that asks for an action when nothing else is to be told, [B,1,w]."""
        flat = action_set.flatten(1)
        out = flat.new_zeros(flat.shape[0], 1, self.width)
        if self.kind == "paper":
            out[:, 0, self.dim + 1 :] = flat
        else:
            out[:, 0, : flat.shape[1]] = flat
            out[:, 0, -1] = 1
        return out

    def _played(self, action_set: Tensor, action: Tensor, reward: Tensor) -> Tensor:
        """The tokens that tell the plays (action [B,n], reward [B,n]), [B,n,w]."""
        index = action.long()
        reward = reward.to(action_set.dtype).unsqueeze(-1)
        batch, n_rounds = index.shape
        zeros = action_set.new_zeros(batch, n_rounds, self.n_actions * self.dim)
        if self.kind == "paper":
            return torch.cat([self._features(action_set, index), reward, zeros], dim=-1)
        one_hot = action_set.new_zeros(batch, n_rounds, self.n_actions).scatter_(2, index.unsqueeze(-1), 1)
        if self.kind == "onehot":
            return torch.cat([zeros, one_hot, reward, torch.ones_like(reward)], dim=-1)
        flat = action_set.flatten(1).unsqueeze(1).expand(-1, n_rounds, -1)
        return torch.cat([flat, one_hot, self._features(action_set, index), reward, torch.zeros_like(reward)], dim=-1)

    def _features(self, action_set: Tensor, index: Tensor) -> Tensor:
        """Features [B,n,d] of the actions [B,n]."""
        return action_set.gather(1, index.unsqueeze(-1).expand(-1, -1, self.dim))

    def position(self, first: int | Tensor, n_tokens: int, like: Tensor) -> Tensor:
        """pos_i = (i, i^2, 1) of the tokens after `first` others, [n_tokens,3] or [B,n_tokens,3]; i is 1-based."""
        index = indices(first, n_tokens, like)
        return torch.stack([index, index * index, torch.ones_like(index)], dim=-1)
