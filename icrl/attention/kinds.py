"""The two attentions that a model is configured with, and the usual one."""

from typing import Literal

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from icrl.attention.problem import Seen
from icrl.attention.relu import relu_attention
from icrl.attention.visible import visible_mask


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, scale: float = 1.0) -> Tensor:
    """Causal softmax attention [B,H,N,D] of the last N of T positions: q [B,H,N,D], k and v [B,H,T,D], N <= T."""
    n_new, n_keys = q.shape[2], k.shape[2]
    if n_new in {1, n_keys}:
        return scaled_dot_product_attention(q, k, v, is_causal=n_new > 1, scale=scale)
    mask = visible_mask(Seen(offset=n_keys - n_new), n_new, n_keys, q.device)
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


def attention(q: Tensor, k: Tensor, v: Tensor, kind: Literal["relu", "softmax"], scale: float = 1.0) -> Tensor:
    """The attention that `model.attention` names, [B,H,N,D], of the last N of T positions."""
    match kind:
        case "relu":
            return relu_attention(q, k, v, scale=scale)
        case "softmax":
            return softmax_attention(q, k, v, scale)
