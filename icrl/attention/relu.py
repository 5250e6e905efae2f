"""ReLU attention: the one function, its packed form, and the answer to which backend computes it.

Shapes: B batch, H query heads, G key heads (H a multiple of G), N queries, T keys, D width of a head, E of a value.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from icrl.attention import arguments, ops, reference
from icrl.attention.dispatch import choose, run_backward, run_forward
from icrl.attention.layout import join_packed, split_packed
from icrl.attention.problem import Seen
from icrl.attention.visible import Normalizer, row_factor


class _Problem(NamedTuple):
    """Checked arguments: the factor of every row, the keys that it sees, and whether something traces."""

    factor: Tensor
    seen: Seen
    traced: bool


def _problem(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    normalizer: Normalizer,
    backend: str,
    deterministic: bool,
    **visible: Any,
) -> _Problem:
    arguments.require_tensors(q, k, v)
    arguments.require_scale(scale, normalizer, q)
    arguments.require_options(backend=backend, deterministic=deterministic)
    seen = arguments.seen_keys(q, k.shape[2], **visible)
    traced = ops.is_traced(q, k, v)
    return _Problem(row_factor(seen, k.shape[2], scale, normalizer, q, traced=traced), seen, traced)


def _with(seen: Seen, documents: Tensor | None) -> Seen:
    """`seen` with the documents that autograd saved: it refuses those that were changed in place since."""
    return seen if documents is None else replace(seen, documents=documents)


class _Attention(torch.autograd.Function):
    """Saves q, k, v and the factors; second derivatives go through the reference's backward pass, T x T."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, factor: Tensor, seen: Seen, backend: str) -> Tensor:
        ctx.save_for_backward(q, k, v, factor, seen.documents)
        ctx.seen, ctx.backend = seen, backend
        return run_forward(backend, q, k, v, factor, seen)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, factor, documents = ctx.saved_tensors
        seen = _with(ctx.seen, documents)
        if torch.is_grad_enabled():  # create_graph: the gradient itself is to be differentiated
            gradients = reference.backward(grad, q, k, v, factor, seen)
        else:
            gradients = run_backward(ctx.backend, grad, q, k, v, factor, seen)
        return *gradients, None, None, None


class _PackedAttention(torch.autograd.Function):
    """As `_Attention`, of one tensor: the buffer that a backend writes the three gradients into is the result."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, factor: Tensor, seen: Seen, backend: str) -> Tensor:
        ctx.save_for_backward(qkv, factor, seen.documents)
        ctx.seen, ctx.backend = seen, backend
        return run_forward(backend, *split_packed(qkv), factor, seen)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        qkv, factor, documents = ctx.saved_tensors
        seen = _with(ctx.seen, documents)
        if torch.is_grad_enabled():
            gradients = reference.backward(grad, *split_packed(qkv), factor, seen)
        else:
            gradients = run_backward(ctx.backend, grad, *split_packed(qkv), factor, seen)
        return join_packed(*gradients), None, None, None


def relu_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float = 1.0,
    causal: bool = True,
    normalizer: Normalizer = "visible",
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
    window: int | None = None,
    q_offset: int | None = None,
    deterministic: bool = True,
    backend: str = "auto",
) -> Tensor:
    """out_i = (1/n_i) sum_{j seen by i} relu(scale <q_i, k_j>) v_j, [B,H,N,E]; Def 1 by default, n_i = i from 1 on.

    q [B,H,N,D], k [B,G,T,D], v [B,G,T,E], any strides, of one dtype (float32, bfloat16, float16: sums in float32;
    float64) and one device; D and E at most 256; head h of q reads head h // (H / G) of k and v. The output is stored
    [B,N,H,E]. Differentiable in q, k and v, as often as asked: a second derivative takes T x T memory.

    scale: positive. causal: row i, at position i + q_offset, sees keys j <= position; else all of them.
    q_offset: None means T - N, the queries are the last N of T positions; any number >= 0 may be given instead.
    window: row i sees the last `window` of those keys only. cu_seqlens: int32 or int64 [documents + 1], 0 first and N
    last: batch 1 holds documents one after the other, which do not see each other; max_seqlen: tokens of the longest,
    or more. normalizer: what row i is divided by; "visible" counts the keys it sees, "none", a positive number, or a
    constant tensor [N]. A row that sees no key is 0. deterministic: equal inputs give equal bits; False permits a
    backend to give that up for speed, which none does now. backend: auto, cpu, gpu, blocked, reference; the environment
    variable ICRL_ATTENTION_BACKEND stands in for auto.

    An unseen score is replaced, not multiplied by 0: NaN or infinity in it reaches no row; in a seen one it does.
    ValueError names the argument, what it was and what was expected, or why the backend asked for refuses.
    """
    factor, seen, traced = _problem(
        q,
        k,
        v,
        scale=scale,
        normalizer=normalizer,
        backend=backend,
        deterministic=deterministic,
        causal=causal,
        cu_seqlens=cu_seqlens,
        max_seqlen=max_seqlen,
        window=window,
        q_offset=q_offset,
    )
    if traced:
        return ops.relu_attention(q, k, v, factor, *ops.flat(seen, backend))
    if ops.is_transformed():
        return reference.forward(q, k, v, factor, seen)
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        out: Tensor = _Attention.apply(q, k, v, factor, seen, backend)  # type: ignore[no-untyped-call]
        return out
    return run_forward(backend, q, k, v, factor, seen)


def relu_attention_qkvpacked(
    qkv: Tensor,
    *,
    scale: float = 1.0,
    causal: bool = True,
    normalizer: Normalizer = "visible",
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
    window: int | None = None,
    deterministic: bool = True,
    backend: str = "auto",
) -> Tensor:
    """`relu_attention` of qkv [B,N,3,H,D], one projection's output read in place; [B,H,N,D], stored [B,N,H,D].

    The gradient is one tensor like qkv; the backends write it in place where qkv is contiguous.
    """
    if not isinstance(qkv, Tensor) or qkv.dim() != 5 or qkv.shape[2] != 3:
        got = tuple(qkv.shape) if isinstance(qkv, Tensor) else type(qkv).__name__
        raise ValueError(f"qkv: got {got}, expected a tensor [batch, tokens, 3, heads, width]")
    factor, seen, traced = _problem(
        *split_packed(qkv),
        scale=scale,
        normalizer=normalizer,
        backend=backend,
        deterministic=deterministic,
        causal=causal,
        cu_seqlens=cu_seqlens,
        max_seqlen=max_seqlen,
        window=window,
        q_offset=None,
    )
    if traced:
        return ops.relu_attention_packed(qkv, factor, *ops.flat(seen, backend))
    if ops.is_transformed():
        return reference.forward(*split_packed(qkv), factor, seen)
    if torch.is_grad_enabled() and qkv.requires_grad:
        out: Tensor = _PackedAttention.apply(qkv, factor, seen, backend)  # type: ignore[no-untyped-call]
        return out
    return run_forward(backend, *split_packed(qkv), factor, seen)


def explain(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = True,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
    window: int | None = None,
    q_offset: int | None = None,
    backend: str = "auto",
) -> str:
    """The backend that `relu_attention` runs for these arguments, and why each one before it does not.

    ValueError as `relu_attention`.
    """
    problem = _problem(
        q,
        k,
        v,
        scale=1.0,
        normalizer="none",
        backend=backend,
        deterministic=True,
        causal=causal,
        cu_seqlens=cu_seqlens,
        max_seqlen=max_seqlen,
        window=window,
        q_offset=q_offset,
    )
    choice = choose(backend, q, k, v, problem.seen)
    return "; ".join([choice.name, *(f"{name} {reason}" for name, reason in choice.refusals.items())])
