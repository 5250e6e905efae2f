"""The operators `torch.ops.icrl.relu_attention*`: what compilers, exporters and dispatch modes see of ReLU attention.

They cost about three times a plain `autograd.Function` in eager mode, so `icrl.attention.relu` calls them only where
something traces. They choose their backend when they run, not when they are traced.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd import forward_ad

from icrl.attention import reference
from icrl.attention.dispatch import run_backward, run_forward
from icrl.attention.layout import join_packed, new_out, rows_first, split_packed
from icrl.attention.problem import Seen

Gradients: TypeAlias = tuple[Tensor, Tensor, Tensor]
Flat: TypeAlias = tuple[bool, int, int | None, Tensor | None, int | None, str]
"""The fields of a `Seen`, then the backend: the arguments that an operator can have."""

_FLAT = "bool causal, SymInt offset, SymInt? window, Tensor? documents, SymInt? longest, str backend"
_SCHEMAS = {
    "relu_attention": f"(Tensor q, Tensor k, Tensor v, Tensor factor, {_FLAT}) -> Tensor",
    "relu_attention_backward": (
        f"(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor factor, {_FLAT}) -> (Tensor, Tensor, Tensor)"
    ),
    "relu_attention_packed": f"(Tensor qkv, Tensor factor, {_FLAT}) -> Tensor",
    "relu_attention_packed_backward": f"(Tensor grad, Tensor qkv, Tensor factor, {_FLAT}) -> Tensor",
}
_OPS = torch.ops.icrl


def is_traced(*tensors: Tensor) -> bool:
    """Does something look at operators, beside running them or instead: a compiler, a mode, a subclass, no device?

    Or does one of the tensors stand for its negative, which an operator is given as it is meant?
    """
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._is_tracing()
        or any(x.is_meta or x.is_neg() or type(x) not in {Tensor, torch.nn.Parameter} for x in tensors)
    )


def is_transformed() -> bool:
    """Is this inside torch.func or forward-mode differentiation, which can go through plain operations only?"""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def flat(seen: Seen, backend: str) -> Flat:
    """The arguments of an operator that say what is seen and who computes."""
    return seen.causal, seen.offset, seen.window, seen.documents, seen.longest, backend


def relu_attention(q: Tensor, k: Tensor, v: Tensor, factor: Tensor, *options: Any) -> Tensor:
    """The operator on q, k, v."""
    out: Tensor = _OPS.relu_attention.default(q, k, v, factor, *options)
    return out


def relu_attention_packed(qkv: Tensor, factor: Tensor, *options: Any) -> Tensor:
    """The operator on qkv [B,N,3,H,D]; its gradient is one tensor, which nothing needs to put together."""
    out: Tensor = _OPS.relu_attention_packed.default(qkv, factor, *options)
    return out


def _forward(q: Tensor, k: Tensor, v: Tensor, factor: Tensor, *options: Any) -> Tensor:
    *fields, backend = options
    return rows_first(run_forward(backend, q, k, v, factor, Seen(*fields)))


def _backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, factor: Tensor, *options: Any) -> Gradients:
    *fields, backend = options
    dq, dk, dv = run_backward(backend, grad, q, k, v, factor, Seen(*fields))
    return rows_first(dq), rows_first(dk), rows_first(dv)


def _packed_forward(qkv: Tensor, factor: Tensor, *options: Any) -> Tensor:
    return _forward(*split_packed(qkv), factor, *options)


def _packed_backward(grad: Tensor, qkv: Tensor, factor: Tensor, *options: Any) -> Tensor:
    *fields, backend = options
    return join_packed(*run_backward(backend, grad, *split_packed(qkv), factor, Seen(*fields)))


def _fake_forward(q: Tensor, k: Tensor, v: Tensor, factor: Tensor, *options: Any) -> Tensor:
    return new_out(q, v)


def _fake_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Gradients:
    dq, dk, dv = (x.new_empty(x.transpose(1, 2).shape).transpose(1, 2) for x in (q, k, v))
    return dq, dk, dv


def _fake_packed_forward(qkv: Tensor, *rest: Any) -> Tensor:
    q, _, v = split_packed(qkv)
    return new_out(q, v)


def _fake_packed_backward(grad: Tensor, qkv: Tensor, *rest: Any) -> Tensor:
    return qkv.new_empty(qkv.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Keeps the tensors among the inputs; the documents are the only one among the options."""
    *tensors, causal, offset, window, documents, longest, backend = inputs
    ctx.save_for_backward(*tensors, documents)
    ctx.options = (causal, offset, window, longest, backend)


def _saved(ctx: Any) -> tuple[list[Tensor], Flat]:
    *tensors, documents = ctx.saved_tensors
    causal, offset, window, longest, backend = ctx.options
    return tensors, (causal, offset, window, documents, longest, backend)


_NO_GRADIENTS = (None,) * 7
"""Of the factor and the options."""


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    tensors, options = _saved(ctx)
    if torch.is_grad_enabled():  # create_graph: the gradient itself is to be differentiated
        q, k, v, factor = tensors
        gradients = reference.backward(grad, q, k, v, factor, Seen(*options[:-1]))
    else:
        gradients = _OPS.relu_attention_backward.default(grad, *tensors, *options)
    return *gradients, *_NO_GRADIENTS


def _differentiate_packed(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (qkv, factor), options = _saved(ctx)
    if torch.is_grad_enabled():
        gradient = join_packed(*reference.backward(grad, *split_packed(qkv), factor, Seen(*options[:-1])))
    else:
        gradient = _OPS.relu_attention_packed_backward.default(grad, qkv, factor, *options)
    return gradient, *_NO_GRADIENTS


for _name, _run, _fake in (
    ("relu_attention", _forward, _fake_forward),
    ("relu_attention_backward", _backward, _fake_backward),
    ("relu_attention_packed", _packed_forward, _fake_packed_forward),
    ("relu_attention_packed_backward", _packed_backward, _fake_packed_backward),
):
    torch.library.define(f"icrl::{_name}", _SCHEMAS[_name])
    torch.library.impl(f"icrl::{_name}", "CompositeExplicitAutograd", _run)
    torch.library.register_fake(f"icrl::{_name}", _fake)
torch.library.register_autograd("icrl::relu_attention", _differentiate, setup_context=_save)
torch.library.register_autograd("icrl::relu_attention_packed", _differentiate_packed, setup_context=_save)
