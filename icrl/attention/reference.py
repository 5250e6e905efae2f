"""The specification of causal attention: T x T scores in any dtype, float64 included. Tests hold the fast paths to it.

Also the backend `reference`, whose backward pass is plain differentiable operations: second derivatives go through it.
Shapes: B batch, H heads, G key heads, T keys, N queries, D width of a head, E width of a value.
"""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar, cast

import torch
from torch import Tensor

from icrl.attention.layout import rows_first
from icrl.attention.problem import Seen
from icrl.attention.visible import Normalizer, visible_count, visible_mask

P = ParamSpec("P")
R = TypeVar("R")


def _last_rows(q_BHND: Tensor, k_BGTD: Tensor) -> Seen:
    return Seen(offset=k_BGTD.shape[2] - q_BHND.shape[2])


def _per_query_head(q_BHND: Tensor, x_BGTD: Tensor) -> Tensor:
    """Keys or values of every query head, [B,H,T,D]."""
    return x_BGTD.repeat_interleave(q_BHND.shape[1] // x_BGTD.shape[1], 1)


def relu_attention_reference(
    q_BHND: Tensor,
    k_BGTD: Tensor,
    v_BGTE: Tensor,
    scale: float = 1.0,
    seen: Seen | None = None,
    normalizer: Normalizer = "visible",
) -> Tensor:
    """out_i = (1/n_i) sum_{j seen by i} relu(scale <q_i, k_j>) v_j (Def 1, where n_i = i, 1-based); [B,H,N,E].

    Without `seen` the queries are the last N of T positions. n_i: the keys that row i sees, or `normalizer`.
    """
    seen = seen or _last_rows(q_BHND, k_BGTD)
    size = (q_BHND.shape[2], k_BGTD.shape[2])
    if isinstance(normalizer, str):
        count = visible_count(seen, *size, q_BHND.device)
        normalizer = count.clamp(min=1).to(q_BHND.dtype) if normalizer == "visible" else 1.0
    divisor = normalizer[:, None] if isinstance(normalizer, Tensor) else normalizer
    scores = scale * torch.einsum("bhid,bhjd->bhij", q_BHND, _per_query_head(q_BHND, k_BGTD))
    weights = torch.relu(scores).masked_fill(~visible_mask(seen, *size, q_BHND.device), 0) / divisor
    return torch.einsum("bhij,bhje->bhie", weights, _per_query_head(q_BHND, v_BGTE))


def softmax_attention_reference(q_BHND: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, scale: float = 1.0) -> Tensor:
    """out_i = sum_{j <= i} softmax_j(scale <q_i, k_j>) v_j; [B,H,N,D]."""
    mask = visible_mask(_last_rows(q_BHND, k_BHTD), q_BHND.shape[2], k_BHTD.shape[2], q_BHND.device)
    scores = scale * torch.einsum("bhid,bhjd->bhij", q_BHND, k_BHTD)
    return torch.einsum("bhij,bhjd->bhid", scores.masked_fill(~mask, -torch.inf).softmax(-1), v_BHTD)


def refusal(q: Tensor, k: Tensor, v: Tensor, seen: Seen) -> str | None:
    """None: this backend computes everything."""
    return None


def _scores(q: Tensor, k: Tensor, seen: Seen) -> Tensor:
    """<q_i, k_j>, 0 where i does not see j."""
    mask = visible_mask(seen, q.shape[2], k.shape[2], q.device)
    return torch.einsum("bhid,bhjd->bhij", q, k).masked_fill(~mask, 0)


def _wide(*tensors: Tensor) -> list[Tensor]:
    return [x.to(torch.promote_types(x.dtype, torch.float32)) for x in tensors]


def _without_autocast(compute: Callable[P, R]) -> Callable[P, R]:
    """The dtype given is the dtype meant."""

    @wraps(compute)
    def run(*arguments: P.args, **options: P.kwargs) -> R:
        device = cast("Tensor", arguments[0]).device.type
        if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
            return compute(*arguments, **options)
        with torch.autocast(device, enabled=False):
            return compute(*arguments, **options)

    return run


@_without_autocast
def forward(q: Tensor, k: Tensor, v: Tensor, factor: Tensor, seen: Seen) -> Tensor:
    """As `icrl.attention.problem` says."""
    wide_q, wide_k, wide_v = _wide(q, _per_query_head(q, k), _per_query_head(q, v))
    weights = torch.relu(_scores(wide_q, wide_k, seen))
    out = torch.einsum("bhij,bhje->bhie", weights, wide_v) * factor[:, None]
    return rows_first(out.to(q.dtype))


@_without_autocast
def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, factor: Tensor, seen: Seen
) -> tuple[Tensor, Tensor, Tensor]:
    """As `icrl.attention.problem` says; differentiable in grad, q, k and v."""
    wide_q, wide_k, wide_v, wide_grad = _wide(q, _per_query_head(q, k), _per_query_head(q, v), grad)
    scores = _scores(wide_q, wide_k, seen)
    wide_grad = wide_grad * factor[:, None]
    gate = torch.einsum("bhie,bhje->bhij", wide_grad, wide_v).masked_fill(scores <= 0, 0)
    dq = torch.einsum("bhij,bhjd->bhid", gate, wide_k)
    dk = torch.einsum("bhij,bhid->bhjd", gate, wide_q)
    dv = torch.einsum("bhij,bhie->bhje", torch.relu(scores), wide_grad)
    batch, key_heads, *_ = k.shape
    dk, dv = (x.reshape(batch, key_heads, -1, *x.shape[2:]).sum(2) for x in (dk, dv))
    return rows_first(dq.to(q.dtype)), rows_first(dk.to(k.dtype)), rows_first(dv.to(v.dtype))
