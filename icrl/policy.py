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
from icrl.envs import BanditBatch, Batch
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
        assert isinstance(environments, BanditBatch)
        batch, n_actions, dim = environments.action_set.shape
        expected = self.model.environment
        if (n_actions, dim) != (expected.n_actions, expected.dim):
            raise ValueError(
                f"environments of {n_actions} actions in dimension {dim}: the model {self.name!r} expects "
                f"{expected.n_actions} actions in dimension {expected.dim}"
            )
        device = self.model.device
        self._action_set = torch.from_numpy(environments.action_set).to(device, self.model.dtype)
        self._actions = torch.zeros(batch, expected.horizon, dtype=torch.int64, device=device)
        self._rewards = torch.zeros(batch, expected.horizon, dtype=self.model.dtype, device=device)
        self._round = 0
        self._probabilities: npt.NDArray[np.float64] | None = None
        if self._cache is not None and self._cache.batch == batch:
            self._cache.reset()
        elif self._use_cache:
            self._cache = self.model.new_cache(batch)

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
            prefix = self.model(self._action_set, self._actions[:, : seen + 1], self._rewards[:, : seen + 1])
            logits: Tensor = prefix[:, -1]
            return logits
        previous = (self._actions[:, seen - 1], self._rewards[:, seen - 1]) if seen else None
        return self.model.forward_cached(self._action_set, previous, self._cache)
