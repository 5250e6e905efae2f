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
        expected = self.model.environment
        got, wanted = _sizes_of(environments), _sizes(expected)
        if got != wanted:
            raise ValueError(f"environments of {got}: the model {self.name!r} expects {wanted}")
        batch = len(environments.index)
        device = self.model.device
        self._states_change = not isinstance(environments, BanditBatch)
        if isinstance(environments, BanditBatch):
            self._shown = torch.from_numpy(environments.action_set).to(device, self.model.dtype)
        else:
            self._shown = torch.zeros(batch, expected.horizon, dtype=torch.int64, device=device)
        self._actions = torch.zeros(batch, expected.horizon, dtype=torch.int64, device=device)
        self._rewards = torch.zeros(batch, expected.horizon, dtype=self.model.dtype, device=device)
        self._round = 0
        self._probabilities: npt.NDArray[np.float64] | None = None
        if self._cache is not None and self._cache.batch == batch:
            self._cache.reset()
        elif self._use_cache:
            self._cache = self.model.new_cache(batch)

    @torch.inference_mode()
    def observe(self, observation: Observation) -> None:
        """See s_t, int [B], of an MDP."""
        if self._states_change:
            assert observation is not None
            self._shown[:, self._round] = torch.from_numpy(observation.astype(np.int64))

    @torch.inference_mode()
    def probabilities(self) -> npt.NDArray[np.float64]:
        """float64[B, A]: Alg_theta(. | D_{t-1}, s_t)."""
        if self._probabilities is None:
            if self._round == self.model.environment.horizon:
                raise ValueError(f"round {self._round + 1}: the model {self.name!r} was made for {self._round} rounds")
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
        self._actions[:, self._round] = torch.from_numpy(action)
        self._rewards[:, self._round] = torch.from_numpy(reward)
        self._round += 1
        self._probabilities = None

    def _logits(self) -> Tensor:
        """Logits [B,A] of this round."""
        seen = self._round
        if self._cache is None:
            # the action and reward of this round are placeholders: no prediction up to this round sees them
            shown = self._shown[:, : seen + 1] if self._states_change else self._shown
            prefix = self.model(shown, self._actions[:, : seen + 1], self._rewards[:, : seen + 1])
            logits: Tensor = prefix[:, -1]
            return logits
        shown = self._shown[:, seen] if self._states_change else self._shown
        previous = (self._actions[:, seen - 1], self._rewards[:, seen - 1]) if seen else None
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
