"""The paper's theorems as explicit weights: transformers of the theory preset that run an algorithm.

`form` and `stream` name what a token holds, `layer` collects heads and neurons, `primitives` are the few things heads
and neurons are used for, and each construction is written in them. Nothing here trains; `sampled` alone plays.
"""

from icrl.constructions.assemble import Construction, Report
from icrl.constructions.bernoulli_thompson import beta_thompson
from icrl.constructions.embed import embed, hold_positions
from icrl.constructions.linear_thompson import thompson
from icrl.constructions.sampled import SampledThompson
from icrl.constructions.soft_linucb import Method, linucb
from icrl.constructions.soft_ucb_vi import ucb_vi

__all__ = [
    "Construction",
    "Method",
    "Report",
    "SampledThompson",
    "beta_thompson",
    "embed",
    "hold_positions",
    "linucb",
    "thompson",
    "ucb_vi",
]
