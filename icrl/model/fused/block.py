"""The fused block as an autograd function: h + Attn(LN(h)), then h + MLP(LN(h)), with ReLU attention (Def 1).

At the paper's sizes a layer's products are so small that a framework spends its time between them: reading and writing
activations, taking heads apart, calling kernels. Here everything that a sequence needs stays in cache, and the backward
pass keeps only h and the mixed values [B,N,D] of the forward pass and makes the rest again.

Gradients of weights are summed within fixed groups of sequences and over the groups in order, so results depend on
neither the number of threads (`torch.get_num_threads()`) nor their timing; the forward pass of a sequence does not
depend on the others of its batch. Threads share sequences out, and backward at most 16 groups of them.

Under autocast it computes in float32 all the same: more exact than asked for, and on a CPU faster.

A GPU wants something else: there the composition runs around the Triton attention, and torch.compile fuses the rest.

Shapes: B sequences, N tokens, D embed_dim, M heads, D' mlp_dim.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.module import _has_any_global_hook

from icrl import native
from icrl.attention import cpu, ops

SOURCE = Path(__file__).with_name("block.cpp")
INCLUDE = Path(cpu.__file__).parent
MAX_WIDTH = 256
"""Beyond it the products are large enough for a library of them, and the weights leave the cache."""
MAX_INNER = 4 * MAX_WIDTH
_SMALL = 1 << 16
"""Floats of h that one thread is through with before a second one has started."""

_log = logging.getLogger(__name__)

Parts = tuple[nn.LayerNorm, nn.Linear, nn.Linear, nn.LayerNorm, nn.Linear, nn.Linear]
"""attention_norm, qkv [3D,D], output [D,D], mlp_norm, mlp_in [D',D], mlp_out [D,D']; each with weight and bias."""
_KINDS = (nn.LayerNorm, nn.Linear, nn.Linear, nn.LayerNorm, nn.Linear, nn.Linear)


class Sizes(ctypes.Structure):
    """Of a block, as `block.cpp` reads them."""

    _fields_ = tuple((name, ctypes.c_long) for name in ("batch", "tokens", "width", "heads", "inner"))


def refusal(h_BND: Tensor, parts: Parts, heads: int) -> str | None:
    """Why this block is not computed here, None when it is; logged the first time, except while compiling."""
    if torch.compiler.is_compiling():
        return "torch.compile fuses the composition itself"  # before a log, which would break the graph
    reason = _refusal(h_BND, parts, heads)
    if reason is not None:
        _log_once(reason)
    return reason


def fused_block(h_BND: Tensor, parts: Parts, heads: int) -> Tensor:
    """The block's output [B,N,D], float32; differentiable once, by h and every parameter.

    Ask `refusal` first. Second derivatives are the composition's alone: ICRL_NATIVE=0.
    """
    parameters = [tensor for part in parts for tensor in (part.weight, part.bias)]
    return _Block.apply(h_BND, heads, parts[0].eps, *parameters)  # type: ignore[no-any-return, no-untyped-call]


def pointers(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    """Addresses of the data of tensors that the caller keeps."""
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))


def _refusal(h_BND: Tensor, parts: Parts, heads: int) -> str | None:
    width, inner = h_BND.shape[-1], parts[4].out_features
    parameters = list(chain.from_iterable(part.parameters(recurse=False) for part in parts))
    if ops.is_traced(h_BND, *parameters) or ops.is_transformed():
        return "something looks at operations or transforms them, and it is none"
    for tensor in (h_BND, *parameters):
        if tensor.device.type != "cpu":
            return f"it is made for CPUs, got a tensor on {tensor.device}"
    if any(tensor.dtype != torch.float32 for tensor in (h_BND, *parameters)):
        return f"it computes in float32, got {h_BND.dtype} and parameters in {parameters[0].dtype}"
    if any(hasattr(parameter, "ds_id") for parameter in parameters):
        return "under ZeRO-3 parameters are gathered where their module is called, it calls none"
    if any(type(part) is not kind for part, kind in zip(parts, _KINDS, strict=True)):
        return "a part of the block has a class of its own, with a forward pass of its own"
    if _has_any_global_hook() or any(  # type: ignore[no-untyped-call]
        part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks
        for part in parts
    ):
        return "a hook waits for a call of a part of the block, it calls none"
    if width % 8 or width // heads % 8 or inner % 8 or width > MAX_WIDTH or inner > MAX_INNER:
        return (
            f"it takes multiples of 8, embed_dim up to {MAX_WIDTH} and mlp_dim up to {MAX_INNER}; "
            f"got embed_dim {width}, {width // heads} a head, mlp_dim {inner}"
        )
    if h_BND.numel() == 0:
        return "there are no tokens"
    return native.refusal(SOURCE, INCLUDE)


@functools.cache
def _log_once(reason: str) -> None:
    _log.info("the fused block is not used: %s", reason)


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, heads: int, epsilon: float, *parameters: Tensor) -> Tensor:
        h = h.contiguous()
        out, mixed = torch.empty_like(h), torch.empty_like(h)
        ctx.heads, ctx.epsilon = heads, epsilon
        _call("practical_block_forward", h, heads, epsilon, parameters, (h, out, mixed))
        ctx.save_for_backward(h, mixed, *parameters)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        h, mixed, *parameters = ctx.saved_tensors
        dh, flat = torch.empty_like(h), h.new_empty(sum(parameter.numel() for parameter in parameters))
        _call(
            "practical_block_backward", h, ctx.heads, ctx.epsilon, parameters, (h, mixed, grad.contiguous(), dh, flat)
        )
        pieces = torch.split(flat, [parameter.numel() for parameter in parameters])
        return dh, None, None, *(piece.view_as(p) for piece, p in zip(pieces, parameters, strict=True))


def _call(
    name: str, h: Tensor, heads: int, epsilon: float, parameters: Sequence[Tensor], tensors: Sequence[Tensor]
) -> None:
    batch, n_tokens, width = h.shape
    sizes = Sizes(batch, n_tokens, width, heads, parameters[8].shape[0])
    threads = 1 if h.numel() < _SMALL else torch.get_num_threads()
    weights = [parameter.contiguous() for parameter in parameters]
    done = getattr(native.library(SOURCE, INCLUDE), name)(
        ctypes.byref(sizes),
        pointers(weights),
        ctypes.c_float(epsilon),
        ctypes.c_float((width // heads) ** -0.5),
        *(ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors),
        ctypes.c_int(threads),
    )
    if not done:
        raise MemoryError("no memory for the scratch of the fused block")
