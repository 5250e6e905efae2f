"""Alg_theta: frame, layers, frame.

Shapes: B trajectories, T rounds, A actions, d dim, N tokens, D embed_dim, M heads, Dh width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from icrl.attention import KVCache, Slot
from icrl.config import EnvironmentConfig, ModelConfig
from icrl.model.factored import FactoredBlock
from icrl.model.frames import PracticalFrame, TheoryFrame
from icrl.model.practical import PracticalBlock
from icrl.model.theory import TheoryBlock
from icrl.tokens import tokenizer_of


class Transformer(nn.Module):
    """Alg_theta: logits over the action set for every round, in one causal pass.

    `seed` alone decides the weights; the global random state is left as it was. With `blocks` (theory preset) these are
    the layers, as they are: they may differ in heads, ranks and D', and `config` holds the largest of each. ValueError
    when embed_dim cannot hold the theory preset's blocks, or there are no tokens for the environment.
    """

    def __init__(
        self,
        config: ModelConfig,
        environment: EnvironmentConfig,
        *,
        seed: int = 0,
        blocks: Sequence[FactoredBlock] | None = None,
    ) -> None:
        super().__init__()
        self.config, self.environment = config, environment
        self.tokenizer = tokenizer_of(environment, config.tokens)
        self.recompute = False
        """Keep only each layer's input for the backward pass and compute the rest of it again."""
        make_frame, make_block = (
            (TheoryFrame, TheoryBlock) if config.preset == "theory" else (PracticalFrame, PracticalBlock)
        )
        with torch.random.fork_rng(devices=[]):  # torch's own constructors draw from the global generator
            self.frame = make_frame(config, environment, self.tokenizer)
            if blocks is not None:
                self.blocks = nn.ModuleList(blocks)
                return
            self.blocks = nn.ModuleList(make_block(config, layer) for layer in range(config.layers))
        generator = torch.Generator().manual_seed(seed)
        for part in (self.frame, *self.blocks):
            part.reset(generator)

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters; inputs are cast to it."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Of the parameters."""
        return next(self.parameters()).device

    def forward(self, shown: Tensor, action: Tensor, reward: Tensor) -> Tensor:
        """Logits [B,T,A] of every round from action int [B,T], reward [B,T] and what the environment shows.

        shown: the action set [B,A,d] of a bandit, the states int [B,T] of an MDP. Row t depends on the action set, the
        states up to s_t and the rounds before t only, bit for bit. ValueError when T exceeds the horizon.
        """
        fields = self.tokenizer.encode(self._cast(shown), action, reward.to(self.dtype)).to(self.dtype)
        wanted = self.tokenizer.prediction
        return self._run(fields, None, wanted if isinstance(wanted, slice) else wanted[: action.shape[1]])

    @torch.no_grad()
    def states(self, shown: Tensor, action: Tensor, reward: Tensor) -> Iterator[Tensor]:
        """The residual stream [B,N,D] before the first layer and after each one, for the arguments of `forward`."""
        fields = self.tokenizer.encode(self._cast(shown), action, reward.to(self.dtype)).to(self.dtype)
        h_BND = self.frame.enter(fields, 0)
        yield h_BND
        for block in self.blocks:
            h_BND = block(h_BND, None)
            yield h_BND

    def forward_cached(self, shown: Tensor, previous: tuple[Tensor, Tensor] | None, cache: KVCache) -> Tensor:
        """Logits [B,A] of the next round; `previous` = (action int [B], reward [B]) of the last, None on the first.

        shown: the action set [B,A,d] of a bandit, the state int [B] of an MDP. After `cache.reset` of some environments
        each is in a round of its own; `previous`, which must then be given, means nothing where it is the first.
        ValueError once a horizon is over, or for rounds of their own where their tokens differ in number.
        """
        if not cache.aligned:
            per_round = self.tokenizer.tokens_per_round
            if previous is None:
                raise ValueError("previous = None: expected (action, reward), which means nothing in a first round")
            if per_round is None:
                raise ValueError("environments in different rounds: expected model.tokens = merged for an MDP")
            if per_round > 1:
                cache.padding = (cache.lengths == 0).int() * (per_round - 1)
        first = cache.longest if cache.aligned else cache.lengths
        fields = self.tokenizer.step(self._cast(shown), previous, first).to(self.dtype)
        return self._run(fields, cache, slice(-1, None)).squeeze(1)

    def new_cache(self, batch: int, *, backend: Literal["auto", "native", "device", "plain"] = "auto") -> KVCache:
        """An empty cache for this many interactions of a whole horizon; `backend` as `KVCache` has it."""
        heads = self.config.heads
        width = self.config.embed_dim if self.config.preset == "theory" else self.config.embed_dim // heads
        factored = [slot for block in self.blocks if isinstance(block, FactoredBlock) for slot in block.slots()]
        return KVCache(
            factored or [Slot(heads, width, width)] * self.config.layers,
            batch,
            self.tokenizer.n_tokens,
            kind=self.config.attention,
            dtype=self.dtype,
            device=self.device,
            backend=backend,
        )

    def _run(self, fields_BNw: Tensor, cache: KVCache | None, wanted: slice | Tensor) -> Tensor:
        stop = fields_BNw.shape[1] + (cache.longest if cache is not None else 0)
        if stop > self.tokenizer.n_tokens:
            raise ValueError(f"{stop} tokens: the horizon is over, the model holds {self.tokenizer.n_tokens}")
        h_BND = self.frame.enter(fields_BNw, cache.first if cache is not None else 0)
        recompute = self.recompute and cache is None and torch.is_grad_enabled()
        for block in self.blocks:
            if recompute:
                h_BND = checkpoint(block, h_BND, None, use_reentrant=False, preserve_rng_state=False)
            else:
                h_BND = block(h_BND, cache)
        if cache is not None:
            cache.advance(fields_BNw.shape[1])
        logits: Tensor = self.frame.leave(h_BND[:, wanted])
        return logits

    def _cast(self, shown: Tensor) -> Tensor:
        """Action sets [B,A,d] in the parameters' dtype, states as they are."""
        return shown.to(self.dtype) if shown.ndim == 3 else shown

    def num_parameters(self) -> dict[str, int]:
        """Parameters by part: backbone (layers and final norm), embedding, position, read_out; and the total."""
        counts = dict.fromkeys(("backbone", "embedding", "position", "read_out"), 0)
        for name, parameter in self.named_parameters():
            owner = name.split(".")[1] if name.startswith("frame.") else "backbone"
            counts[owner if owner in counts else "backbone"] += parameter.numel()
        return counts | {"total": sum(counts.values())}

    def operator_norm(self) -> float:
        """|||theta||| of the theory preset: the largest of its layers' norms. ValueError with another preset."""
        norms = [block.operator_norm() for block in self.blocks if isinstance(block, TheoryBlock | FactoredBlock)]
        if not norms:
            raise ValueError("operator_norm is defined for model.preset=theory only: LayerNorm has no place in it")
        return max(norms)
