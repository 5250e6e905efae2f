"""A layer of the theory preset in factors: Def 1-3 with heads of low rank and matrices that are mostly 0.

The first r rows of Q_m and K_m are stored, the others are 0 and add nothing to <Q_m h_i, K_m h_j>; V_m = U_m S_m with
U_m [D,c] and S_m [c,D]. Keys that several heads have in common are computed and cached once.
Shapes: B trajectories, N tokens, D embed_dim, P = B N columns, H heads, G distinct key heads, r rank of Q and K,
c rank of V.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from icrl.attention import KVCache, Slot, relu_attention
from icrl.config import ModelConfig
from icrl.model.sparse import SparseMap
from icrl.model.theory import TheoryBlock, clip


class HeadGroup(NamedTuple):
    """Heads of one shape: H queries on G keys and values, head m on key m // (H / G)."""

    heads: int
    keys: int
    rank: int
    """r."""
    width: int
    """c."""

    @property
    def projected(self) -> tuple[int, int, int]:
        """Rows of `project` that the group takes: queries H r, keys G r, values G c."""
        return self.heads * self.rank, self.keys * self.rank, self.keys * self.width


class FactoredBlock(nn.Module):
    """h_i += sum_m (1/i) sum_{j <= i} relu(<Q_m h_i, K_m h_j>) V_m h_j; h_i += W_2 relu(W_1 h_i); clip_R.

    project [R,D]: rows of all Q, K, S, group by group in this order. write [D, sum H c]: the columns of all U. mlp_in
    [D',D] and mlp_out [D,D']: W_1 and W_2. `slot` is the first of the block's slots in a cache, one a group.
    """

    shapes: Tensor

    def __init__(
        self,
        groups: tuple[HeadGroup, ...],
        project: SparseMap,
        write: SparseMap,
        mlp_in: SparseMap,
        mlp_out: SparseMap,
        *,
        slot: int,
        radius: float | None = None,
    ) -> None:
        super().__init__()
        self.groups, self.slot, self.radius = groups, slot, radius
        self.project, self.write, self.mlp_in, self.mlp_out = project, write, mlp_in, mlp_out
        self.register_buffer("shapes", torch.tensor(groups, dtype=torch.int64).reshape(-1, 4))

    @classmethod
    def of_state(
        cls, state: Mapping[str, Tensor], prefix: str, width: int, *, slot: int, radius: float | None
    ) -> FactoredBlock:
        """The block of width D whose tensors stand in a state dict under this prefix."""
        groups = tuple(HeadGroup(*shape) for shape in state[f"{prefix}.shapes"].tolist())
        inner = state[f"{prefix}.mlp_in.offsets"].numel() - 1
        widths = {"project": width, "write": sum(g.heads * g.width for g in groups), "mlp_in": width, "mlp_out": inner}
        maps = {name: SparseMap.of_state(state, f"{prefix}.{name}", columns) for name, columns in widths.items()}
        return cls(groups, **maps, slot=slot, radius=radius)

    @property
    def heads(self) -> int:
        """M."""
        return sum(group.heads for group in self.groups)

    @property
    def mlp_dim(self) -> int:
        """D'."""
        return self.mlp_in.height

    def slots(self) -> list[Slot]:
        """The places the block takes in a cache."""
        return [Slot(group.keys, group.rank, group.width) for group in self.groups]

    def forward(self, h_BND: Tensor, cache: KVCache | None) -> Tensor:
        batch, n_tokens, width = h_BND.shape
        h_DP = h_BND.reshape(-1, width).t().contiguous()
        if self.groups:
            h_DP = h_DP + self.write(self._attend(self.project(h_DP), batch, n_tokens, cache))
        if self.mlp_dim:
            h_DP = h_DP + self.mlp_out(torch.relu(self.mlp_in(h_DP)))
        return clip(h_DP.t().reshape(batch, n_tokens, width), self.radius)

    def _attend(self, rows_RP: Tensor, batch: int, n_tokens: int, cache: KVCache | None) -> Tensor:
        """(1/i) sum_j relu(<Q_m h_i, K_m h_j>) S_m h_j of every head, [sum H c, P]."""
        out = []
        parts = iter(torch.split(rows_RP, [size for group in self.groups for size in group.projected]))
        for place, group in enumerate(self.groups):
            # tokens stay the last axis in memory
            q, k, v = (
                next(parts).view(heads, -1, batch, n_tokens).permute(2, 0, 3, 1)
                for heads in (group.heads, group.keys, group.keys)
            )
            mixed = relu_attention(q, k, v) if cache is None else cache.append_and_attend(self.slot + place, q, k, v)
            out.append(mixed.permute(1, 3, 0, 2).reshape(-1, batch * n_tokens))
        return torch.cat(out)

    def dense(self) -> TheoryBlock:
        """The same layer with D x D matrices, trainable: zero rows fill Q and K, one zero neuron an empty MLP."""
        width, heads = self.project.width, max(1, self.heads)
        config = ModelConfig(
            preset="theory", heads=heads, embed_dim=width, mlp_dim=max(1, self.mlp_dim), clip_norm=self.radius
        )
        block = TheoryBlock(config, 0).to(self.project.coefficients.dtype)
        with torch.no_grad():
            for parameter in block.parameters():
                parameter.zero_()
            first = 0
            for query, key, value in self.matrices():
                stop, rank = first + query.shape[0], query.shape[1]
                block.query[first:stop, :rank], block.key[first:stop, :rank] = query, key
                block.value[first:stop] = value
                first = stop
            block.mlp_in[: self.mlp_dim], block.mlp_out[:, : self.mlp_dim] = self.mlp_in.dense(), self.mlp_out.dense()
        return block

    def matrices(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Group by group: the rows of Q [H,r,D] and K [H,r,D] that are not 0, and V [H,D,D]."""
        for query, key, inner, outer in self._factors():
            yield query, key, outer.transpose(1, 2) @ inner

    def _factors(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Group by group Q [H,r,D], K [H,r,D], S [H,c,D] and U' [H,c,D]."""
        width = self.project.width
        rows = iter(torch.split(self.project.dense(), [size for group in self.groups for size in group.projected]))
        columns = iter(torch.split(self.write.dense().t(), [group.heads * group.width for group in self.groups]))
        for group in self.groups:
            query, key, inner = (next(rows).view(n, -1, width) for n in (group.heads, group.keys, group.keys))
            share = group.heads // group.keys
            outer = next(columns).reshape(group.heads, -1, width)
            yield query, key.repeat_interleave(share, 0), inner.repeat_interleave(share, 0), outer

    @torch.no_grad()
    def operator_norm(self) -> float:
        """max_m max(|Q_m|, |K_m|) + sum_m |V_m| + |W_1| + |W_2|, spectral norms, from the factors."""
        score = value = 0.0
        for factors in self._factors():
            query, key, inner, outer = (x.double() for x in factors)
            score = max(score, float(_norms(query).max()), float(_norms(key).max()))
            # |U S| = |R_U R_S'| with the triangular factors of U and S'
            r_outer, r_inner = (torch.linalg.qr(x.transpose(1, 2), mode="r")[1] for x in (outer, inner))
            value += float(torch.linalg.matrix_norm(r_outer @ r_inner.transpose(1, 2), 2).sum())
        return score + value + self.mlp_in.norm() + self.mlp_out.norm()


def _norms(rows_HrD: Tensor) -> Tensor:
    """Spectral norms [H] of matrices with few rows."""
    gram = rows_HrD @ rows_HrD.transpose(1, 2)
    norms: Tensor = torch.linalg.eigvalsh(gram)[:, -1].clamp(min=0).sqrt()
    return norms
