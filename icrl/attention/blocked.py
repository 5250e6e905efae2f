"""Backend `blocked`: plain torch, in blocks whose scores stay in cache; on a CPU never T x T.

There is no row maximum and no row sum, so blocks of keys just add; the backward pass recomputes the scores.
Shapes: B batch, G key heads, R query heads for each of them, P = B * G pairs, N queries, T keys, D width of a head,
E width of a value.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from icrl.attention.layout import new_gradients, new_out
from icrl.attention.problem import Seen

CACHE_BYTES = 512 * 1024
"""Size of a block of scores on a CPU: half of a typical L2."""
MAX_ROWS = 64
"""Rows of a block of scores on a CPU: wider blocks waste work above the diagonal, narrower ones are slow products."""


class Block(NamedTuple):
    """One block of scores: its pairs, its query rows, the keys that one of its rows sees, and its diagonals."""

    pairs: slice
    rows: slice
    keys: slice
    below: int | None
    """Row i of the block sees its keys j <= i + below; None: it sees them all."""
    above: int | None
    """Row i of the block sees its keys j >= i + above; None: it sees them all."""


def blocks(q_PRND: Tensor, n_keys: int, seen: Seen) -> Iterator[Block]:
    """Cuts the scores into blocks; on an accelerator one block holds everything. Rows without keys are in none."""
    n_pairs, repeats, n_new, _ = q_PRND.shape
    on_cpu = q_PRND.device.type == "cpu"
    height = MAX_ROWS if on_cpu and n_new > MAX_ROWS * 3 // 2 else n_new
    for start in range(0, n_new, height):
        stop = min(start + height, n_new)
        position, last = start + seen.offset, stop + seen.offset
        first = 0 if seen.window is None else max(0, position + 1 - seen.window)
        end = min(n_keys, last) if seen.causal else n_keys
        if first >= end:
            continue
        below, above = position - first, None if seen.window is None else position - first + 1 - seen.window
        limits = (
            below if seen.causal and below < end - first - 1 else None,
            above if above is not None and above + stop - start > 1 else None,
        )
        per_pair = repeats * (stop - start) * (end - first) * q_PRND.element_size()
        group = max(1, CACHE_BYTES // per_pair) if on_cpu else n_pairs
        for pair in range(0, n_pairs, group):
            yield Block(slice(pair, pair + group), slice(start, stop), slice(first, end), *limits)


def _weights(q_PnD: Tensor, k_PmD: Tensor, block: Block) -> Tensor:
    """relu(<q_i, k_j>) [P,R*n,m], 0 where i does not see j: selected, so that no unseen score, NaN included, counts."""
    scores = torch.bmm(q_PnD, k_PmD.transpose(1, 2)).relu_()
    by_row = scores.view(scores.shape[0], -1, block.rows.stop - block.rows.start, scores.shape[2])
    if block.below is not None:
        by_row.tril_(block.below)
    if block.above is not None:
        by_row.triu_(block.above)
    return scores


def _documents(n_new: int, seen: Seen) -> Iterator[tuple[slice, Seen]]:
    if seen.documents is None:
        yield slice(0, n_new), seen
        return
    bounds = seen.documents.tolist()
    inner = replace(seen, documents=None, longest=None)
    for start, stop in pairwise(bounds):
        yield slice(start, stop), inner


def _queries(x_BHND: Tensor, key_heads: int, dtype: torch.dtype) -> Tensor:
    """[P,R,N,D] in the dtype of the products."""
    batch, heads, *rest = x_BHND.shape
    return x_BHND.reshape(batch * key_heads, heads // key_heads, *rest).to(dtype)


def _product_dtype(dtype: torch.dtype) -> torch.dtype:
    """Scores pass float16's 65504 soon, and CPUs multiply it slowly; bfloat16 products are exact enough, and quick."""
    return torch.float32 if dtype == torch.float16 else dtype


def refusal(q: Tensor, k: Tensor, v: Tensor, seen: Seen) -> str | None:
    """None: this backend computes everything."""
    return None


def forward(q: Tensor, k: Tensor, v: Tensor, factor: Tensor, seen: Seen) -> Tensor:
    """As `icrl.attention.problem` says; documents are read to the host."""
    out = new_out(q, v)
    for part, inner in _documents(q.shape[2], seen):
        keys = part if seen.documents is not None else slice(None)
        out[:, :, part] = _forward(q[:, :, part], k[:, :, keys], v[:, :, keys], factor[part], inner)
    return out


def _forward(q: Tensor, k: Tensor, v: Tensor, factor: Tensor, seen: Seen) -> Tensor:
    dtype, key_heads = _product_dtype(q.dtype), k.shape[1]
    q_PRND = _queries(q, key_heads, dtype)
    k_PTD, v_PTE = (x.flatten(0, 1).to(dtype) for x in (k, v))
    out_PRNE = q_PRND.new_zeros(*q_PRND.shape[:3], v.shape[3])
    for block in blocks(q_PRND, k.shape[2], seen):
        pairs, rows, keys = block[:3]
        weights = _weights(q_PRND[pairs, :, rows].flatten(1, 2), k_PTD[pairs, keys], block)
        rows_out = out_PRNE[pairs, :, rows]
        sums = torch.bmm(weights, v_PTE[pairs, keys]).view(rows_out.shape)
        torch.mul(sums, factor[rows, None], out=rows_out)
    return out_PRNE.view(*q.shape[:3], -1)


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, factor: Tensor, seen: Seen
) -> tuple[Tensor, Tensor, Tensor]:
    """As `icrl.attention.problem` says; documents are read to the host."""
    results = new_gradients(q, k, v)
    for part, inner in _documents(q.shape[2], seen):
        keys = part if seen.documents is not None else slice(None)
        inputs = (grad[:, :, part], q[:, :, part], k[:, :, keys], v[:, :, keys])
        for result, own, gradient in zip(
            results, (part, keys, keys), _backward(*inputs, factor[part], inner), strict=True
        ):
            result[:, :, own] = gradient
    return results


def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, factor: Tensor, seen: Seen
) -> tuple[Tensor, Tensor, Tensor]:
    dtype, key_heads = _product_dtype(q.dtype), k.shape[1]
    q_PRND = _queries(q, key_heads, dtype)
    grad_PRNE = _queries(grad * factor[:, None], key_heads, dtype)
    k_PTD, v_PTE = (x.flatten(0, 1).to(dtype) for x in (k, v))
    dq = torch.zeros_like(q_PRND, memory_format=torch.contiguous_format)
    dk, dv = (torch.zeros(x.shape, dtype=factor.dtype, device=x.device) for x in (k_PTD, v_PTE))
    for block in blocks(q_PRND, k.shape[2], seen):
        pairs, rows, keys = block[:3]
        q_, grad_ = (x[pairs, :, rows].flatten(1, 2) for x in (q_PRND, grad_PRNE))
        k_, v_ = k_PTD[pairs, keys], v_PTE[pairs, keys]
        weights = _weights(q_, k_, block)
        gate = torch.bmm(grad_, v_.transpose(1, 2))
        # a masked weight is 0, so the derivative of relu masks too
        torch.ops.aten.threshold_backward.grad_input(gate, weights, 0, grad_input=gate)
        rows_dq = dq[pairs, :, rows]
        rows_dq.copy_(torch.bmm(gate, k_).view(rows_dq.shape))
        _add_product(dk[pairs, keys], gate, q_)
        _add_product(dv[pairs, keys], weights, grad_)
    return dq.view(q.shape), dk.view(k.shape), dv.view(v.shape)


def _add_product(total_PmD: Tensor, left_Pnm: Tensor, right_PnD: Tensor) -> None:
    """total += left^T right, the total in float32 or float64: blocks of rows add up without rounding to a half."""
    if total_PmD.dtype == left_Pnm.dtype:
        total_PmD.baddbmm_(left_Pnm.transpose(1, 2), right_PnD)
    else:
        total_PmD += torch.bmm(left_Pnm.transpose(1, 2), right_PnD)
