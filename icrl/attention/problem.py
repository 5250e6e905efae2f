"""What every backend of ReLU attention computes, once the arguments are checked.

    out_i = factor_i * sum_{j seen by i} relu(<q_i, k_j>) v_j

relu(a s) = a relu(s) for a > 0, so the scale and the normaliser (1/i of Def 1) are one factor per row, outside the loop
over keys. A backend is a module with

    refusal(q, k, v, seen) -> str | None          why it cannot compute this, None when it can
    forward(q, k, v, factor, seen) -> out
    backward(grad, q, k, v, factor, seen) -> dq, dk, dv

Shapes: q [B,H,N,D], k [B,G,T,D], v [B,G,T,E], any strides; out and grad [B,H,N,E]; factor float32 or float64 [N];
H is a multiple of G (grouped heads: query head h reads key head h // (H / G)).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Seen:
    """Which keys a query sees: query i stands at position i + offset and sees j <= position (causal), j > position -
    window (window), within its own document (documents)."""

    causal: bool = True
    offset: int = 0
    """Position of the first query among the keys; T - N for the last N of T positions."""
    window: int | None = None
    """Keys a query sees at most, its own included; needs causal."""
    documents: Tensor | None = None
    """cu_seqlens: int32 [n + 1], ascending from 0 to N = T; batch 1 holds n documents one after the other, positions
    start anew in each."""
    longest: int | None = None
    """Tokens of the longest document, or more where reading it would make a GPU wait; None without documents."""
