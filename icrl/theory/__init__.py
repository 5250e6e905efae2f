"""Meters of the theory: the norm of Def 3, the capacity of the class it bounds, and the guarantee of Theorem 6.

`norm` measures weights, `cover` counts the functions of a class, `guarantee` puts both into the theorem's right-hand
side. Every constant is explicit; docs/theory/meters.md derives them. Nothing here trains, plays or reads files.
"""

from icrl.theory.cover import PAPER_CONSTANT, PracticalClass, TheoryClass, class_of, paper_log_cover
from icrl.theory.guarantee import Guarantee, fewest_trajectories, guarantee, reward_bound
from icrl.theory.norm import Norm, operator_norm

__all__ = [
    "PAPER_CONSTANT",
    "Guarantee",
    "Norm",
    "PracticalClass",
    "TheoryClass",
    "class_of",
    "fewest_trajectories",
    "guarantee",
    "operator_norm",
    "paper_log_cover",
    "reward_bound",
]
