"""The transformer: Def 1-3 exactly (`theory`), and their practical form (`practical`).

Shapes: B trajectories, T rounds, A actions, d dim, N tokens, D embed_dim, M heads, Dh width of a head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from icrl.attention import KVCache, attention
from icrl.config import BanditConfig, EnvironmentConfig, ModelConfig
from icrl.tokens import TheoryLayout, Tokenizer, require_readable


class PracticalBlock(nn.Module):
    """h + Attn(LN(h)), then h + MLP(LN(h)): pre-LN, low-dimensional heads, output projection, biases, ReLU MLP.

    The norm stands before each part, off the residual path: it trains without warm-up tricks at every depth. Scores are
    divided by sqrt(Dh) with either attention, so that they start at unit size.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        width = config.embed_dim
        self.layer, self.heads, self.kind = layer, config.heads, config.attention
        self.share = 1 / math.sqrt(2 * config.layers)
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, config.mlp_dim)
        self.mlp_out = nn.Linear(config.mlp_dim, width)

    def reset(self, generator: torch.Generator) -> None:
        """Weights of variance 1/fan_in; what writes to the residual stream shares that variance among all 2L parts."""
        for part in (self.qkv, self.output, self.mlp_in, self.mlp_out):
            _normal(part, 1 / math.sqrt(part.in_features), generator)
        with torch.no_grad():
            self.output.weight *= self.share
            self.mlp_out.weight *= self.share

    def forward(self, h_BND: Tensor, cache: KVCache | None) -> Tensor:
        batch, n_tokens, width = h_BND.shape
        qkv = self.qkv(self.attention_norm(h_BND)).view(batch, n_tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        mixed = attention(q, k, v, self.kind, (width // self.heads) ** -0.5)
        h_BND = h_BND + self.output(mixed.transpose(1, 2).reshape(batch, n_tokens, width))
        out: Tensor = h_BND + self.mlp_out(torch.relu(self.mlp_in(self.mlp_norm(h_BND))))
        return out


class TheoryBlock(nn.Module):
    """Def 1-3: h_i += sum_m (1/i) sum_{j <= i} relu(<Q_m h_i, K_m h_j>) V_m h_j; h_i += W_2 relu(W_1 h_i); clip_R.

    Q, K, V [M,D,D], W_1 [D',D], W_2 [D,D']: no scale, no output matrix, no bias, no LayerNorm.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        width = config.embed_dim
        self.layer, self.radius = layer, config.clip_norm
        self.share = 1 / math.sqrt(2 * config.layers)
        self.query, self.key, self.value = (nn.Parameter(torch.empty(config.heads, width, width)) for _ in range(3))
        self.mlp_in = nn.Parameter(torch.empty(config.mlp_dim, width))
        self.mlp_out = nn.Parameter(torch.empty(width, config.mlp_dim))

    def reset(self, generator: torch.Generator) -> None:
        """As the practical block, but nothing reads i and i^2 at first: they dwarf every other entry."""
        width, inner = self.mlp_out.shape
        with torch.no_grad():
            for matrix in (self.query, self.key):
                matrix.normal_(0, 1 / math.sqrt(width), generator=generator)
            self.value.normal_(0, self.share / math.sqrt(width * self.value.shape[0]), generator=generator)
            self.mlp_in.normal_(0, 1 / math.sqrt(width), generator=generator)
            self.mlp_out.normal_(0, self.share / math.sqrt(inner), generator=generator)
            for matrix in (self.query, self.key, self.value, self.mlp_in):
                matrix[..., -3:-1] = 0

    def forward(self, h_BND: Tensor, cache: KVCache | None) -> Tensor:
        q, k, v = (self._heads(h_BND, matrix) for matrix in (self.query, self.key, self.value))
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        h_BND = h_BND + attention(q, k, v, "relu").sum(1)
        h_BND = h_BND + linear(torch.relu(linear(h_BND, self.mlp_in)), self.mlp_out)
        return clip(h_BND, self.radius)

    @staticmethod
    def _heads(h_BND: Tensor, matrix_MDD: Tensor) -> Tensor:
        """X_m h_i for every head, [B,M,N,D]."""
        return torch.matmul(h_BND.unsqueeze(1), matrix_MDD.transpose(1, 2))

    @torch.no_grad()
    def operator_norm(self) -> float:
        """max_m max(|Q_m|, |K_m|) + sum_m |V_m| + |W_1| + |W_2|, spectral norms."""
        query, key, value = (torch.linalg.matrix_norm(x.double(), 2) for x in (self.query, self.key, self.value))
        mlp = torch.linalg.matrix_norm(self.mlp_in.double(), 2) + torch.linalg.matrix_norm(self.mlp_out.double(), 2)
        return float(torch.maximum(query, key).max() + value.sum() + mlp)


class PracticalFrame(nn.Module):
    """Into and out of the residual stream: linear embedding, learned positions, final norm, linear read-out."""

    def __init__(self, config: ModelConfig, environment: BanditConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.embedding = nn.Linear(tokenizer.width, config.embed_dim)
        self.position = nn.Parameter(torch.empty(tokenizer.n_tokens, config.embed_dim))
        self.final_norm = nn.LayerNorm(config.embed_dim)
        self.read_out = nn.Linear(config.embed_dim, environment.n_actions)

    def reset(self, generator: torch.Generator) -> None:
        """A small read-out, so that the first policy is near uniform."""
        _normal(self.embedding, 1 / math.sqrt(self.embedding.in_features), generator)
        _normal(self.read_out, 0.02, generator)
        with torch.no_grad():
            self.position.normal_(0, 0.02, generator=generator)

    def enter(self, fields_BNw: Tensor, first: int) -> Tensor:
        """Residual stream [B,N,D] of raw fields; `first` tokens came before."""
        embedded: Tensor = self.embedding(fields_BNw)
        return embedded + self.position[first : first + fields_BNw.shape[1]]

    def leave(self, h_BTD: Tensor) -> Tensor:
        """Logits [B,T,A]."""
        logits: Tensor = self.read_out(self.final_norm(h_BTD))
        return logits


class TheoryFrame(nn.Module):
    """Fixed token blocks in, the logit block out: no parameters. ValueError when embed_dim cannot hold the blocks."""

    def __init__(self, config: ModelConfig, environment: BanditConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.layout = TheoryLayout(environment, tokenizer, config.embed_dim)
        self.radius = config.clip_norm

    def reset(self, generator: torch.Generator) -> None:
        """Nothing to draw."""

    def enter(self, fields_BNw: Tensor, first: int) -> Tensor:
        """clip_R of the tokens [B,N,D]; `first` tokens came before."""
        return clip(self.layout.place(fields_BNw, first), self.radius)

    def leave(self, h_BTD: Tensor) -> Tensor:
        """Logits [B,T,A]."""
        return h_BTD[..., self.layout.logits]


class Transformer(nn.Module):
    """Alg_theta: logits over the action set for every round, in one causal pass.

    `seed` alone decides the weights; the global random state is left as it was. ValueError when embed_dim cannot hold
    the theory preset's blocks, or there are no tokens for the environment.
    """

    def __init__(self, config: ModelConfig, environment: EnvironmentConfig, *, seed: int = 0) -> None:
        super().__init__()
        readable = require_readable(environment)
        self.config, self.environment = config, readable
        self.tokenizer = Tokenizer(readable, config.tokens)
        make_frame, make_block = (
            (TheoryFrame, TheoryBlock) if config.preset == "theory" else (PracticalFrame, PracticalBlock)
        )
        with torch.random.fork_rng(devices=[]):  # torch's own constructors draw from the global generator
            self.frame = make_frame(config, readable, self.tokenizer)
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

    def forward(self, action_set: Tensor, action: Tensor, reward: Tensor) -> Tensor:
        """Logits [B,T,A] of every round from action_set [B,A,d], action int [B,T] and reward [B,T].

        Row t depends on the action set and on rounds before t only, bit for bit. ValueError when T exceeds the horizon.
        """
        fields = self.tokenizer.encode(action_set.to(self.dtype), action, reward)
        return self._run(fields, None, self.tokenizer.prediction)

    def forward_cached(self, action_set: Tensor, previous: tuple[Tensor, Tensor] | None, cache: KVCache) -> Tensor:
        """Logits [B,A] of the next round; `previous` = (action int [B], reward [B]) of the last, None on the first.

        ValueError once the horizon is over.
        """
        fields = self.tokenizer.step(action_set.to(self.dtype), previous)
        return self._run(fields, cache, slice(-1, None)).squeeze(1)

    def new_cache(self, batch: int) -> KVCache:
        """An empty cache for this many interactions of a whole horizon."""
        heads = self.config.heads
        width = self.config.embed_dim if self.config.preset == "theory" else self.config.embed_dim // heads
        shape = (batch, heads, self.tokenizer.n_tokens, width)
        return KVCache(self.config.layers, shape, self.dtype, self.device)

    def _run(self, fields_BNw: Tensor, cache: KVCache | None, wanted: slice) -> Tensor:
        first = cache.length if cache is not None else 0
        stop = first + fields_BNw.shape[1]
        if stop > self.tokenizer.n_tokens:
            raise ValueError(f"{stop} tokens: the horizon is over, the model holds {self.tokenizer.n_tokens}")
        h_BND = self.frame.enter(fields_BNw, first)
        for block in self.blocks:
            h_BND = block(h_BND, cache)
        if cache is not None:
            cache.advance(fields_BNw.shape[1])
        logits: Tensor = self.frame.leave(h_BND[:, wanted])
        return logits

    def num_parameters(self) -> dict[str, int]:
        """Parameters by part: backbone (layers and final norm), embedding, position, read_out; and the total."""
        counts = dict.fromkeys(("backbone", "embedding", "position", "read_out"), 0)
        for name, parameter in self.named_parameters():
            owner = name.split(".")[1] if name.startswith("frame.") else "backbone"
            counts[owner if owner in counts else "backbone"] += parameter.numel()
        return counts | {"total": sum(counts.values())}

    def operator_norm(self) -> float:
        """|||theta||| of the theory preset: the largest of its layers' norms. ValueError with another preset."""
        norms = [block.operator_norm() for block in self.blocks if isinstance(block, TheoryBlock)]
        if not norms:
            raise ValueError("operator_norm is defined for model.preset=theory only: LayerNorm has no place in it")
        return max(norms)


def clip(h_BND: Tensor, radius: float | None) -> Tensor:
    """clip_R (Def 3): every token onto the ball of this radius; None never binds."""
    if radius is None:
        return h_BND
    norm: Tensor = torch.linalg.vector_norm(h_BND, dim=-1, keepdim=True)
    return h_BND * (radius / norm).clamp(max=1)


def _normal(part: nn.Linear, std: float, generator: torch.Generator) -> None:
    with torch.no_grad():
        part.weight.normal_(0, std, generator=generator)
        part.bias.zero_()
