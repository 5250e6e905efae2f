"""What `relu_attention` refuses, and the keys that its arguments let a row see.

The values of cu_seqlens and of a normaliser are checked on a CPU only: reading them would make a GPU wait.
"""

from __future__ import annotations

import math
from typing import NoReturn

import torch
from torch import Tensor

from icrl.attention.dispatch import require_backend
from icrl.attention.ops import is_traced
from icrl.attention.problem import Seen
from icrl.attention.visible import Normalizer

MAX_WIDTH = 256
"""Widest head."""
FAR = 2**30
"""Positions are below it, and a wider window is one of this many keys: no sum of two of them leaves 32 bits."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def _refuse(name: str, got: object, expected: str) -> NoReturn:
    raise ValueError(f"{name}: got {got}, expected {expected}")


def _readable(x: Tensor) -> bool:
    """May its values be looked at, without waiting and outside a trace?"""
    return x.device.type == "cpu" and not is_traced(x)


_INTEGERS = (int, torch.SymInt)
_NUMBERS = (*_INTEGERS, float, torch.SymFloat)


def _is_a(kinds: tuple[type, ...], option: object) -> bool:
    return isinstance(option, kinds) and not isinstance(option, bool)


_SMALLEST = {wide: torch.finfo(wide).tiny for wide in (torch.float32, torch.float64)}
_LARGEST = {wide: torch.finfo(wide).max for wide in (torch.float32, torch.float64)}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def require_tensors(q: Tensor, k: Tensor, v: Tensor) -> None:
    """ValueError unless q [B,H,N,D], k [B,G,T,D], v [B,G,T,E] go together."""
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not isinstance(x, Tensor) or x.dim() != 4 or 0 in x.shape:
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            _refuse(name, got, "a tensor of four sizes [batch, heads, tokens, width], each at least 1")
        if x.dtype not in DTYPES:
            _refuse(name, x.dtype, "float32, bfloat16, float16 or float64")
        if x.dtype != q.dtype:
            _refuse(name, x.dtype, f"the dtype of q, {q.dtype}")
        if x.device != q.device:
            _refuse(name, x.device, f"the device of q, {q.device}")
        if x.shape[3] > MAX_WIDTH:
            _refuse(name, f"width {x.shape[3]}", f"at most {MAX_WIDTH}")
    (batch, heads, _, width), (_, key_heads, n_keys, _) = q.shape, k.shape
    if k.shape[0] != batch or k.shape[3] != width:
        _refuse("k", tuple(k.shape), f"[{batch}, key heads, keys, {width}], as q {tuple(q.shape)}")
    if heads % key_heads != 0:
        _refuse("k", f"{key_heads} heads", f"a divisor of the {heads} heads of q")
    if v.shape[:3] != k.shape[:3]:
        _refuse("v", tuple(v.shape), f"[{batch}, {key_heads}, {n_keys}, width of a value], as k {tuple(k.shape)}")


_NORMALIZERS = "visible, none, a positive number, or a tensor of one per row"


def require_scale(scale: float, normalizer: Normalizer, q: Tensor) -> None:
    """ValueError unless scale > 0, the normaliser is a word, a number > 0 or one such number per row, and the factor of
    a row, scale / normaliser, is a normal number of the type of the sums.

    Messages are made where they are needed: a size in a string would tie a compiled graph to that size.
    """
    if not _is_a(_NUMBERS, scale):
        _refuse("scale", type(scale).__name__, "an int or a float (one that is learnt: multiply q by it)")
    if not 0 < scale < math.inf:
        _refuse("scale", scale, "a positive number (negate q for a negative one: relu(-s) is not -relu(s))")
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    if not _SMALLEST[wide] <= scale <= _LARGEST[wide]:
        _refuse("scale", scale, f"a number that {_name(wide)} holds")
    if isinstance(normalizer, Tensor):
        if normalizer.shape != (q.shape[2],) or normalizer.device != q.device:
            _refuse("normalizer", f"{tuple(normalizer.shape)} on {normalizer.device}", f"[{q.shape[2]}] on {q.device}")
        if normalizer.requires_grad or normalizer.is_complex():
            _refuse(
                "normalizer", f"{normalizer.dtype} that requires a gradient", "a real constant: multiply the output"
            )
        if _readable(normalizer):
            factor = scale / normalizer.to(wide)
            if not bool(((factor > 0) & (factor < math.inf)).all()):
                _refuse(
                    "normalizer",
                    "a value that is not",
                    f"positive and finite values, and {scale} / them in {_name(wide)}",
                )
    elif isinstance(normalizer, str):
        if normalizer not in {"visible", "none"}:
            _refuse("normalizer", repr(normalizer), _NORMALIZERS)
    elif not _is_a(_NUMBERS, normalizer) or not 0 < normalizer < math.inf:
        _refuse("normalizer", normalizer, _NORMALIZERS)
    elif not _SMALLEST[wide] <= scale / normalizer <= _LARGEST[wide]:
        _refuse("normalizer", normalizer, f"a number such that {_name(wide)} holds {scale} / it")


def _documents(cu_seqlens: Tensor, max_seqlen: int | None, q: Tensor, n_keys: int) -> tuple[Tensor, int]:
    """Their bounds as int32, and the tokens of the longest one, or as many as it could have."""
    n_tokens = q.shape[2]
    if not isinstance(cu_seqlens, Tensor) or cu_seqlens.dtype not in {torch.int32, torch.int64}:
        _refuse("cu_seqlens", getattr(cu_seqlens, "dtype", type(cu_seqlens).__name__), "a tensor of int32 or int64")
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 2:
        _refuse("cu_seqlens", tuple(cu_seqlens.shape), "[documents + 1]")
    if cu_seqlens.device != q.device:
        _refuse("cu_seqlens", cu_seqlens.device, f"the device of q, {q.device}")
    if q.shape[0] != 1 or n_keys != n_tokens:
        _refuse("q", f"batch {q.shape[0]}, {n_tokens} rows for {n_keys} keys", "with cu_seqlens batch 1, a row per key")
    if max_seqlen is not None and not 0 < max_seqlen <= n_tokens:
        _refuse("max_seqlen", max_seqlen, f"1 to {n_tokens}")
    longest = n_tokens if max_seqlen is None else max_seqlen
    if _readable(cu_seqlens):
        lengths = cu_seqlens.diff()
        found = int(lengths.max())
        if (int(cu_seqlens[0]), int(cu_seqlens[-1])) != (0, n_tokens) or int(lengths.min()) < 1:
            _refuse("cu_seqlens", cu_seqlens.tolist(), f"0 first, {n_tokens} last, ascending")
        if found > longest:
            _refuse("max_seqlen", max_seqlen, f"at least {found}, the longest document of cu_seqlens")
        longest = found
    return cu_seqlens.to(torch.int32), longest


def seen_keys(
    q: Tensor,
    n_keys: int,
    *,
    causal: bool,
    cu_seqlens: Tensor | None,
    max_seqlen: int | None,
    window: int | None,
    q_offset: int | None,
) -> Seen:
    """The keys that a row sees; ValueError for arguments that do not go together."""
    if not isinstance(causal, bool):
        _refuse("causal", repr(causal), "True or False")
    for name, option in (("window", window), ("q_offset", q_offset), ("max_seqlen", max_seqlen)):
        if option is not None and not _is_a(_INTEGERS, option):
            _refuse(name, repr(option), "None or an int (of a tensor of one number its .item())")
    if window is not None and (not causal or window < 1):
        _refuse("window", f"{window} with causal={causal}", "at least 1, with causal=True")
    if q_offset is not None and (q_offset < 0 or not causal or cu_seqlens is not None):
        _refuse("q_offset", f"{q_offset} with causal={causal}", "at least 0, with causal=True, without cu_seqlens")
    if q_offset is not None and q_offset > FAR - q.shape[2]:
        _refuse("q_offset", q_offset, f"positions below {FAR}: at most {FAR - q.shape[2]} for {q.shape[2]} rows")
    window = None if window is None else min(window, FAR)
    if max_seqlen is not None and cu_seqlens is None:
        _refuse("max_seqlen", max_seqlen, "None without cu_seqlens")
    if cu_seqlens is not None:
        documents, longest = _documents(cu_seqlens, max_seqlen, q, n_keys)
        return Seen(causal, 0, window, documents, longest)
    if not causal:
        return Seen(causal=False)
    if q_offset is None:
        q_offset = n_keys - q.shape[2]
        if q_offset < 0:
            _refuse("q", f"{q.shape[2]} rows for {n_keys} keys", "at most a row per key, or the first row's q_offset")
    return Seen(causal, q_offset, window)


def require_options(*, backend: str, deterministic: bool) -> None:
    """ValueError for a backend without a meaning, or a `deterministic` that is no bool."""
    require_backend(backend)
    if not isinstance(deterministic, bool):
        _refuse("deterministic", deterministic, "True or False")
