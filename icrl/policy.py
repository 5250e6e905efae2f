"""A transformer as an Algorithm: it meets the same environments and the same noise as every baseline.

Shapes: B interactions, T rounds, A actions, d dim.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from icrl.algorithms import Algorithm, Draws, choose, largest
from icrl.attention import KVCache
from icrl.config import EnvironmentConfig, GridWorldConfig, TabularMDPConfig
from icrl.envs import BanditBatch, Batch, MDPBatch, Observation
from icrl.model import Transformer


class TransformerPolicy(Algorithm):
    """Alg_theta as an Algorithm, in inference mode on the model's device.

    action: sample from Alg_theta (the paper's definition), or greedy. cache=False runs the whole history again every
    round, as a specification of the cached way. ValueError when the environments do not fit the model, or past its
    horizon.
    """

    def __init__(
        self,
        model: Transformer,
        action: Literal["sample", "greedy"] = "sample",
        *,
        cache: bool = True,
        name: str = "transformer",
    ) -> None:
        self.name = name
        self.model, self.action = model, action
        self._use_cache = cache
        self._cache: KVCache | None = None

    @torch.inference_mode()
    def reset(self, environments: Batch) -> None:
        """Start B fresh interactions."""
        self._shown = self._readable(environments)
        batch, horizon, device = len(environments.index), self.model.environment.horizon, self.model.device
        self._actions = torch.zeros(batch, horizon, dtype=torch.int64, device=device)
        self._rewards = torch.zeros(batch, horizon, dtype=self.model.dtype, device=device)
        self._round, self._rows = np.zeros(batch, np.int64), np.arange(batch)
        self._probabilities: npt.NDArray[np.float64] | None = None
        if self._cache is not None and self._cache.batch == batch:
            self._cache.reset()
        elif self._use_cache:
            self._cache = self.model.new_cache(batch)

    @torch.inference_mode()
    def observe(self, observation: Observation) -> None:
        """See s_t, int [B], of an MDP."""
        if self._shows_states:
            assert observation is not None
            self._shown[self._rows, self._round] = torch.from_numpy(observation.astype(np.int64)).to(self._shown.device)

    @torch.inference_mode()
    def restart(self, which: npt.NDArray[np.int64], environments: Batch) -> None:
        """End the interactions `which`, int64[n] of 0..B-1, and start fresh ones with n environments in their places.

        The others go on: from now on each interaction is in a round of its own. Comes after `update`, before the next
        action. ValueError at another time, or when the environments do not fit the model or `which`.
        """
        if self._probabilities is not None:
            raise ValueError("restart in the middle of a round: expected after update, before probabilities or act")
        shown = self._readable(environments)
        if which.shape != (len(shown),) or len(np.unique(which)) != len(which):
            raise ValueError(f"which of shape {which.shape}: expected {len(shown)} different interactions")
        if len(which) and not 0 <= which.min() <= which.max() < len(self._round):
            raise ValueError(f"which in {which.min()}..{which.max()}: expected interactions 0..{len(self._round) - 1}")
        if self._cache is not None:
            self._cache.reset(which)
        self._shown[torch.from_numpy(which).to(self._shown.device)] = shown
        self._round[which] = 0

    @property
    def _shows_states(self) -> bool:
        return isinstance(self.model.environment, TabularMDPConfig | GridWorldConfig)

    def _readable(self, environments: Batch) -> Tensor:
        """A copy of the action sets [B,A,d], or room for the states [B,T], if the environments fit the model."""
        got, expected = _sizes_of(environments), _sizes(self.model.environment)
        if got != expected:
            raise ValueError(f"environments of {got}: the model {self.name!r} expects {expected}")
        device = self.model.device
        if isinstance(environments, BanditBatch):
            return torch.from_numpy(environments.action_set).to(device, self.model.dtype, copy=True)
        return torch.zeros(len(environments.index), self.model.environment.horizon, dtype=torch.int64, device=device)

    @torch.inference_mode()
    def probabilities(self) -> npt.NDArray[np.float64]:
        """float64[B, A]: Alg_theta(. | D_{t-1}, s_t)."""
        if self._probabilities is None:
            horizon = self.model.environment.horizon
            if self._round.max(initial=0) == horizon:
                raise ValueError(f"round {horizon + 1}: the model {self.name!r} was made for {horizon} rounds")
            logits = self._logits().to("cpu", torch.float64)
            self._probabilities = logits.softmax(-1).numpy()
        return self._probabilities

    def act(self, draws: Draws) -> npt.NDArray[np.int64]:
        """int64[B]: one action each, by the inverse of the cumulative probabilities or the most likely one."""
        probabilities = self.probabilities()
        return choose(probabilities, draws.uniform) if self.action == "sample" else largest(probabilities)

    @torch.inference_mode()
    def update(self, action: npt.NDArray[np.int64], reward: npt.NDArray[np.float32]) -> None:
        """Append (action int64[B], reward float32[B]) to the history."""
        self.probabilities()  # the cache must hold this round before the next one
        self._actions[self._rows, self._round] = torch.from_numpy(action).to(self._actions.device)
        self._rewards[self._rows, self._round] = torch.from_numpy(reward).to(self._rewards)
        self._round += 1
        self._probabilities = None

    def _logits(self) -> Tensor:
        """Logits [B,A] of this round."""
        if self._cache is None:
            # the actions and rewards from this round on are placeholders: no prediction up to this round sees them
            longest = int(self._round.max()) + 1
            shown = self._shown[:, :longest] if self._shows_states else self._shown
            prefix = self.model(shown, self._actions[:, :longest], self._rewards[:, :longest])
            logits: Tensor = prefix[self._rows, self._round]
            return logits
        shown = self._shown[self._rows, self._round] if self._shows_states else self._shown
        if self._cache.aligned and not self._round[0]:
            return self.model.forward_cached(shown, None, self._cache)
        last = np.maximum(self._round - 1, 0)
        previous = (self._actions[self._rows, last], self._rewards[self._rows, last])
        return self.model.forward_cached(shown, previous, self._cache)


def _sizes_of(environments: Batch) -> str:
    """What must agree with the model's environment, in words."""
    if isinstance(environments, BanditBatch):
        return _bandit(*environments.action_set.shape[1:])
    assert isinstance(environments, MDPBatch)
    _, steps, states, actions = environments.optimal_values.shape
    return _mdp(states, actions, steps)


def _sizes(environment: EnvironmentConfig) -> str:
    if isinstance(environment, TabularMDPConfig | GridWorldConfig):
        return _mdp(environment.n_states, environment.n_actions, environment.episode_length)
    return _bandit(environment.n_actions, environment.dim)


def _mdp(states: int, actions: int, steps: int) -> str:
    return f"{states} states, {actions} actions and {steps} steps an episode"


def _bandit(actions: int, dim: int) -> str:
    return f"{actions} actions in dimension {dim}"
