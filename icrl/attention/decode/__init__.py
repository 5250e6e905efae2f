"""How one layer's keys and values are held and read while decoding; `icrl.attention.cache` chooses among the ways.

`native` is C++ for CPUs, `device` Triton for GPUs, `plain` torch, on any device and for softmax. Each has a class

    Held(kind, slot, batch, capacity, dtype, device)
    append_and_attend(q, k, v, scale, now) -> out      out [B,H,N,E] over memory [B,N,H,E]
    nbytes

and a function refusal(kind, slots, dtype, device) -> str | None: why it cannot hold such slots, None when it can.

Shapes: B environments, N new tokens, H query heads, G key heads (H a multiple of G: query head h reads key head
h // (H / G)), D and E widths of a key and a value.
"""

from icrl.attention.decode.slot import HeldLayer, Now, Slot

__all__ = ["HeldLayer", "Now", "Slot"]
