"""Causal attention: `relu_attention` (Def 1) on every device, softmax beside it, and the KV cache of decoding.

`reference` is the specification, `blocked`, `cpu` and `gpu` compute the same (`problem` says what). Nothing here knows
tokens or models.
"""

from icrl.attention.cache import KVCache
from icrl.attention.decode import Slot
from icrl.attention.kinds import attention
from icrl.attention.relu import explain, relu_attention, relu_attention_qkvpacked

__all__ = ["KVCache", "Slot", "attention", "explain", "relu_attention", "relu_attention_qkvpacked"]
