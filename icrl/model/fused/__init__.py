"""A whole practical block as one C++ kernel on CPUs; `PracticalBlock.forward` is its specification and its fallback.

`block.cpp` works on one sequence at a time with `product.h` (small matrix products), `norm.h` (LayerNorm) and the
attention of `icrl.attention.cpu`. Nothing here knows modules' names, layers or configs.
"""

from icrl.model.fused.block import fused_block, refusal

__all__ = ["fused_block", "refusal"]
