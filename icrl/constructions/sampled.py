"""The transformer of `thompson(..., read="samples")` as an Algorithm: it is handed a Gaussian in every round.

Shapes: B interactions, A actions, d dim, S Monte Carlo samples.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from icrl import streams
from icrl.algorithms import Algorithm, Draws, largest
from icrl.algorithms.thompson import MONTE_CARLO_SEED
from icrl.attention import KVCache
from icrl.constructions.assemble import Construction
from icrl.envs import BanditBatch, Batch
from icrl.streams import Split, Stream


class SampledThompson(Algorithm):
    """Shows the action set with z_t ~ N(0, I) as row A + 1, and plays the largest logit.

    z_t are the normals that `icrl.algorithms.Thompson` draws in the same round: the two play alike in law, not move by
    move, as they take different square roots of Sigma_t^{-1}.
    """

    samples = 256
    """S, samples behind `probabilities`."""

    def __init__(self, model: Construction, *, name: str = "sampled_thompson") -> None:
        """ValueError unless the model reads a Gaussian."""
        if "z" not in model.stream.blocks:
            raise ValueError("model: expected thompson(..., read='samples'), this one has no block 'z' in its tokens")
        self.model, self.name = model, name
        self._cache: KVCache | None = None

    @torch.inference_mode()
    def reset(self, environments: Batch) -> None:
        """Start B fresh interactions; ValueError when they are of another shape than the model."""
        assert isinstance(environments, BanditBatch)
        B, A, d = environments.action_set.shape
        tokens = self.model.environment
        if (A + 1, d) != (tokens.n_actions, getattr(tokens, "dim", None)):
            raise ValueError(f"environments of {A} actions in dimension {d}: the model {self.name!r} plays others")
        self._shown = torch.from_numpy(environments.action_set).to(self.model.device, self.model.dtype)
        self._actions = torch.zeros(B, tokens.horizon, dtype=torch.int64)
        self._rewards = torch.zeros(B, tokens.horizon, dtype=self.model.dtype)
        self._round = 0
        self._cache = self.model.new_cache(B)

    @torch.inference_mode()
    def probabilities(self) -> npt.NDArray[np.float64]:
        """float64[B, A]: share of S samples of z_t that make a the action, each with the whole history anew.

        The samples are a function of the round alone, those of `Thompson.probabilities`.
        """
        B, A, d = self._shown.shape
        place = np.array([self._round])
        drawn = streams.normals(MONTE_CARLO_SEED, Split.EVAL, Stream.ALGORITHM, place, self.samples * d)
        z_SD = torch.from_numpy(drawn.reshape(self.samples, d))
        seen = self._round + 1  # the action and reward of this round are placeholders
        out = np.empty((B, A))
        for row in range(B):
            shown = self._with(self._shown[row : row + 1].expand(self.samples, A, d), z_SD)
            history = (past[row : row + 1, :seen].expand(self.samples, seen) for past in (self._actions, self._rewards))
            best = self.model(shown, *history)[:, -1].argmax(-1)
            out[row] = torch.bincount(best, minlength=A)[:A].numpy() / self.samples
        return out

    @torch.inference_mode()
    def act(self, draws: Draws) -> npt.NDArray[np.int64]:
        """int64[B]; once a round."""
        assert self._cache is not None
        shown = self._with(self._shown, torch.from_numpy(draws.normals(self._shown.shape[2])))
        last = self._round - 1
        previous = (self._actions[:, last], self._rewards[:, last]) if self._round else None
        logits = self.model.forward_cached(shown, previous, self._cache)
        return largest(logits.to("cpu", torch.float64).numpy())

    @torch.inference_mode()
    def update(self, action: npt.NDArray[np.int64], reward: npt.NDArray[np.float32]) -> None:
        """Append (action int64[B], reward float32[B]) to the history."""
        self._actions[:, self._round] = torch.from_numpy(action)
        self._rewards[:, self._round] = torch.from_numpy(reward)
        self._round += 1

    def _with(self, action_set: Tensor, z: Tensor) -> Tensor:
        """[n,A+1,d]: the action set [n,A,d] with z [n,d] below."""
        return torch.cat([action_set, z.to(action_set)[:, None]], dim=1)
