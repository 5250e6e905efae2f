"""Causal attention, ReLU-normalised (Def 1) and softmax, behind one function; the KV cache of decoding.

`reference` is the specification, `blocked` the implementation on any device. Nothing here knows tokens or models.
"""

from typing import Literal

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from icrl.attention.blocked import blocked_relu_attention, causal_mask
from icrl.attention.cache import KVCache
from icrl.attention.decode import Slot

__all__ = ["KVCache", "Slot", "attention"]


def attention(q: Tensor, k: Tensor, v: Tensor, kind: Literal["relu", "softmax"], scale: float = 1.0) -> Tensor:
    """Causal attention [B,H,N,Dh] of the last N of T positions: q [B,H,N,Dh], k and v [B,H,T,Dh], N <= T, any dtype.

    relu: (1/i) sum_{j <= i} relu(scale <q_i, k_j>) v_j, i 1-based (Def 1), for scale > 0; softmax: the usual one.
    """
    match kind:
        case "relu":
            return blocked_relu_attention(q, k, v, scale)
        case "softmax":
            n_new, n_keys = q.shape[2], k.shape[2]
            if n_new in {1, n_keys}:
                return scaled_dot_product_attention(q, k, v, is_causal=n_new > 1, scale=scale)
            mask = causal_mask(n_new, n_keys, q.device)
            return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
