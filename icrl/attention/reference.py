"""The specification of causal attention: T x T scores in any dtype, float64 included. Tests hold the fast paths to it.

Shapes: B batch, H heads, T positions, N <= T queries (the last N positions), Dh width of a head.
"""

import torch
from torch import Tensor


def _scores(q_BHNd: Tensor, k_BHTd: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Scores [B,H,N,T] and the mask [N,T] of the pairs j <= i."""
    n_new, n_keys = q_BHNd.shape[2], k_BHTd.shape[2]
    mask = torch.ones(n_new, n_keys, dtype=torch.bool, device=q_BHNd.device).tril(n_keys - n_new)
    return scale * torch.einsum("bhid,bhjd->bhij", q_BHNd, k_BHTd), mask


def relu_attention_reference(q_BHNd: Tensor, k_BHTd: Tensor, v_BHTd: Tensor, scale: float = 1.0) -> Tensor:
    """out_i = (1/i) sum_{j <= i} relu(scale <q_i, k_j>) v_j, i 1-based (Def 1); [B,H,N,Dh]."""
    scores, mask = _scores(q_BHNd, k_BHTd, scale)
    n_new, n_keys = mask.shape
    position = torch.arange(n_keys - n_new + 1, n_keys + 1, dtype=q_BHNd.dtype, device=q_BHNd.device)
    weights = torch.relu(scores).masked_fill(~mask, 0) / position[:, None]
    return torch.einsum("bhij,bhjd->bhid", weights, v_BHTd)


def softmax_attention_reference(q_BHNd: Tensor, k_BHTd: Tensor, v_BHTd: Tensor, scale: float = 1.0) -> Tensor:
    """out_i = sum_{j <= i} softmax_j(scale <q_i, k_j>) v_j; [B,H,N,Dh]."""
    scores, mask = _scores(q_BHNd, k_BHTd, scale)
    weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    return torch.einsum("bhij,bhjd->bhid", weights, v_BHTd)
