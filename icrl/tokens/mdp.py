"""MDP trajectories as tokens: two a step and one empty token an episode (the paper's), or one a step.

Shapes: B trajectories, T = K H rounds, S states, A actions, H steps of an episode, N tokens, w width of the raw fields.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from icrl.config import MDPConfig
from icrl.tokens.base import Kind, indices


class MDPTokenizer:
    """One layout of an MDP's trajectory.

    paper: [0_{A+1} | one-hot s_h], [one-hot a_h, r_h | 0_S] for h = 1..H, then an empty token, for every episode.
    merged: [one-hot a_{t-1}, r_{t-1} | one-hot s_t].
    pos_i = (k, h, v, i, i^2, 1): episode, step (H + 1 on the empty token), v = 1 where there is no action, index.

    Raises:
        ValueError: onehot, whose tokens would be those of paper.
    """

    def __init__(self, environment: MDPConfig, kind: Kind) -> None:
        if kind == "onehot":
            raise ValueError(
                f"model.tokens = onehot: expected paper or merged with environment.kind = {environment.kind}; "
                "its paper tokens are one-hot already"
            )
        self.kind: Kind = kind
        self.n_states, self.n_actions = environment.n_states, environment.n_actions
        self.episode_length, self.horizon = environment.episode_length, environment.horizon
        self.width = self.n_actions + 1 + self.n_states
        self.tokens_per_episode = self.episode_length if kind == "merged" else 2 * self.episode_length + 1
        self.n_tokens = environment.episodes * self.tokens_per_episode
        self.position_width = 6
        self.tokens_per_round = 1 if kind == "merged" else None

    @property
    def prediction(self) -> slice | Tensor:
        """The state tokens."""
        if self.kind == "merged":
            return slice(None)
        round_ = torch.arange(self.horizon)
        return round_ // self.episode_length * self.tokens_per_episode + round_ % self.episode_length * 2

    def encode(self, state: Tensor, action: Tensor, reward: Tensor) -> Tensor:
        """Raw fields [B,N,w] of state int [B,T], action int [B,T] and reward [B,T], in the dtype of `reward`."""
        if self.kind == "merged":
            fields = self._states(state, reward.dtype)
            fields[:, 1:] += self._played(action[:, :-1], reward[:, :-1])
            return fields
        batch, rounds = action.shape
        pairs = torch.stack([self._states(state, reward.dtype), self._played(action, reward)], dim=2).flatten(1, 2)
        episodes = -(-rounds // self.episode_length)
        padded = pairs.new_zeros(batch, episodes * self.episode_length * 2, self.width)
        padded[:, : 2 * rounds] = pairs
        split = padded.view(batch, episodes, 2 * self.episode_length, self.width)
        return torch.cat([split, torch.zeros_like(split[:, :, :1])], dim=2).flatten(1, 2)

    def step(self, state: Tensor, previous: tuple[Tensor, Tensor] | None, first: int | Tensor) -> Tensor:
        """The tokens [B,n,w] up to the prediction at state int [B], after `first` others (int [B] if that differs)."""
        if previous is None:
            return self._states(state[:, None], torch.float32)
        action, reward = previous
        asked = self._states(state[:, None], reward.dtype)
        played = self._played(action[:, None], reward[:, None])
        if self.kind == "merged":
            return asked + (played if isinstance(first, int) else torch.where((first > 0)[:, None, None], played, 0))
        assert isinstance(first, int), "rounds of this layout differ in their number of tokens"
        ended = first % self.tokens_per_episode == self.tokens_per_episode - 2
        return torch.cat([played, torch.zeros_like(played), asked] if ended else [played, asked], dim=1)

    def position(self, first: int | Tensor, n_tokens: int, like: Tensor) -> Tensor:
        """pos_i of the tokens after `first` others, [n_tokens,6] or [B,n_tokens,6]."""
        index = indices(first, n_tokens, like)
        episode = torch.div(index - 1, self.tokens_per_episode, rounding_mode="floor")
        within = index - 1 - episode * self.tokens_per_episode
        per_step = 1 if self.kind == "merged" else 2
        step = torch.div(within, per_step, rounding_mode="floor")
        asks = (within - step * per_step == 0).to(like.dtype)
        return torch.stack([episode + 1, step + 1, asks, index, index * index, torch.ones_like(index)], dim=-1)

    def _states(self, state: Tensor, dtype: torch.dtype) -> Tensor:
        """The tokens that show states int [B,n], [B,n,w]."""
        shown = one_hot(state.long(), self.n_states).to(dtype)
        return torch.cat([shown.new_zeros(*state.shape, self.n_actions + 1), shown], dim=-1)

    def _played(self, action: Tensor, reward: Tensor) -> Tensor:
        """The tokens that tell the plays (action [B,n], reward [B,n]), [B,n,w]."""
        chosen = one_hot(action.long(), self.n_actions).to(reward.dtype)
        return torch.cat([chosen, reward.unsqueeze(-1), chosen.new_zeros(*action.shape, self.n_states)], dim=-1)
