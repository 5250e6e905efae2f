"""The paper's theorems as explicit weights: transformers of the theory preset that run an algorithm.

`form` and `stream` name what a token holds, `layer` collects heads and neurons, `primitives` are the few things heads
and neurons are used for, and each construction is written in them. Nothing here trains or plays.
"""

from icrl.constructions.assemble import Construction, Report
from icrl.constructions.embed import embed, hold_positions
from icrl.constructions.soft_linucb import Method, linucb

__all__ = ["Construction", "Method", "Report", "embed", "hold_positions", "linucb"]
