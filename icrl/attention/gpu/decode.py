"""Decoding: append one token to the cache and attend to it and all before it, in one launch for all environments.

    out_n = factor_n * sum_{j <= length_n} relu(<q_n, k_nj>) v_nj        factor_n = scale / (length_n + 1), or scale

One program reads one environment's cache once (a few heads of it, where heads are many or wide), in vector loads, no
matrix units: a step is bound by the bytes of the cache. The lengths stay on the device, every environment its own, so
one CUDA graph replays for every step. Shapes: N environments, H heads, G key heads, D width, Tmax capacity.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from icrl.attention.gpu.launch import Launch, rounded
from icrl.attention.gpu.tables import Tile

ELEMENTS = 2048
"""Elements of keys that a program holds at a time: with those of values four 16-byte loads in flight a thread."""
WIDEST = 512
"""Elements of one token that a program takes, at most: beyond, the key heads are split among programs."""


# arguments of one kind share a line
# fmt: off
@triton.jit(do_not_specialize=["capacity", "scale"])
def decode_kernel(
    Q, K, V, Cache, Lengths, Out,
    q_environment, q_head, q_column, k_environment, k_head, k_column, v_environment, v_head, v_column,
    capacity, scale,
    GROUP: tl.constexpr, KEY_HEADS: tl.constexpr, D: tl.constexpr, HEADS_TILE: tl.constexpr, D_TILE: tl.constexpr,
    TOKENS: tl.constexpr, VISIBLE: tl.constexpr,
):
    """Program (n, s): key heads s * HEADS_TILE.. of environment n. A length at the capacity gives NaN, no write."""
    environment = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * HEADS_TILE + tl.arange(0, HEADS_TILE)
    far_heads = heads.to(tl.int64)[:, None]
    columns = tl.arange(0, D_TILE)
    here = (heads < KEY_HEADS)[:, None] & (columns < D)[None, :]
    within = heads[:, None] * D + columns[None, :]
    length = tl.load(Lengths + environment)
    room = (length >= 0) & (length < capacity)
    stop = tl.where(room, length, 0)
    token: tl.constexpr = 2 * KEY_HEADS * D
    cache = Cache + environment * capacity * token

    k_at = k_environment * environment + far_heads * k_head + columns[None, :] * k_column
    v_at = v_environment * environment + far_heads * v_head + columns[None, :] * v_column
    k_new, v_new = tl.load(K + k_at, mask=here, other=0.0), tl.load(V + v_at, mask=here, other=0.0)
    slot = cache + stop.to(tl.int64) * token
    tl.store(slot + within, k_new, mask=here & room)
    tl.store(slot + KEY_HEADS * D + within, v_new, mask=here & room)

    for member in tl.static_range(GROUP):
        q_at = q_environment * environment + (far_heads * GROUP + member) * q_head + columns[None, :] * q_column
        q = tl.load(Q + q_at, mask=here, other=0.0).to(tl.float32)
        total = tl.zeros([TOKENS, HEADS_TILE, D_TILE], tl.float32)
        for start in range(0, stop, TOKENS):
            tokens = start + tl.arange(0, TOKENS)
            held = (tokens < stop)[:, None, None] & here[None, :, :]
            at = cache + tl.cast(start, tl.int64) * token
            at += (tl.arange(0, TOKENS) * token)[:, None, None] + within[None, :, :]
            k = tl.load(at, mask=held, other=0.0).to(tl.float32)
            v = tl.load(at + KEY_HEADS * D, mask=held, other=0.0).to(tl.float32)
            weights = tl.maximum(tl.sum(k * q[None, :, :], 2), 0.0, propagate_nan=tl.PropagateNan.ALL)
            total += weights[:, :, None] * v
        weight = tl.sum(k_new.to(tl.float32) * q, 1)
        weight = tl.maximum(weight, 0.0, propagate_nan=tl.PropagateNan.ALL)
        out = tl.sum(total, 0) + weight[:, None] * v_new.to(tl.float32)
        factor = scale / (length + 1).to(tl.float32) if VISIBLE else scale
        out = tl.where(room, out * factor, float("nan"))
        out_at = environment * (KEY_HEADS * GROUP * D) + (heads * GROUP + member)[:, None] * D + columns[None, :]
        tl.store(Out + out_at, out.to(Out.dtype.element_ty), mask=here)
# fmt: on


def decode_launch(
    out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cache: Tensor,
    lengths: Tensor,
    scale: float,
    visible: bool,  # noqa: FBT001
) -> Launch:
    """One step into `out` [N,H,D] and the cache."""
    environments, capacity, _, key_heads, width = cache.shape
    tile_width = triton.next_power_of_2(width)
    heads_tile = min(triton.next_power_of_2(key_heads), max(1, WIDEST // tile_width))
    tokens = max(1, ELEMENTS // (heads_tile * tile_width))
    arguments = {
        "Q": q,
        "K": k,
        "V": v,
        "Cache": cache,
        "Lengths": lengths,
        "Out": out,
        "capacity": capacity,
        "scale": float(scale),
        "GROUP": q.shape[1] // key_heads,
        "KEY_HEADS": key_heads,
        "D": width,
        "HEADS_TILE": heads_tile,
        "D_TILE": tile_width,
        "TOKENS": tokens,
        "VISIBLE": visible,
    }
    for name, x in (("q", q), ("k", k), ("v", v)):
        arguments |= {f"{name}_environment": x.stride(0), f"{name}_head": x.stride(1), f"{name}_column": x.stride(2)}
    grid = (environments, rounded(key_heads, heads_tile))
    return Launch(decode_kernel, grid, arguments, Tile(1, tokens, 4, 1))


def append_and_attend(
    q: Tensor, k: Tensor, v: Tensor, cache: Tensor, lengths: Tensor, scale: float = 1.0, *, visible: bool = True
) -> Tensor:
    """out [N,H,D] of one new token per environment, whose k and v join the cache; visible: over length + 1.

    q [N,H,D]; k, v [N,G,D], any strides; cache [N,Tmax,2,G,D] contiguous; lengths int32 [N], the tokens held before the
    append, at most Tmax - 1, unchanged by this (every layer appends at the same place). An environment whose cache is
    full is left alone and gets NaN: on the device nothing can raise. Capturable in a CUDA graph.
    """
    environments, _, two, key_heads, width = cache.shape
    if two != 2 or not cache.is_contiguous():
        raise ValueError(f"cache: got {tuple(cache.shape)}, expected [N,Tmax,2,G,D], contiguous")
    if k.shape != (environments, key_heads, width) or v.shape != k.shape:
        raise ValueError(f"k, v: got {tuple(k.shape)}, {tuple(v.shape)}, expected {(environments, key_heads, width)}")
    if q.shape[0] != environments or q.shape[2] != width or q.shape[1] % key_heads:
        raise ValueError(f"q: got {tuple(q.shape)}, expected [{environments}, a multiple of {key_heads}, {width}]")
    if lengths.shape != (environments,) or lengths.dtype != torch.int32:
        raise ValueError(f"lengths: got {lengths.dtype} {tuple(lengths.shape)}, expected int32 [{environments}]")
    if not (q.dtype == k.dtype == v.dtype == cache.dtype):
        raise ValueError(f"q, k, v, cache: got {q.dtype}, {k.dtype}, {v.dtype}, {cache.dtype}, expected one type")
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    with torch.cuda.device_of(q):
        decode_launch(out, q, k, v, cache, lengths, scale, visible).run()
    return out
