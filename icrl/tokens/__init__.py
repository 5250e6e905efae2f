"""Trajectories as tokens: layouts for bandits and MDPs, and the theory preset's blocks. Nothing here knows models."""

from __future__ import annotations

from icrl.config import EnvironmentConfig, GridWorldConfig, LinearBanditConfig, TabularMDPConfig
from icrl.tokens.bandit import BanditTokenizer
from icrl.tokens.base import Kind, Tokenizer, positions
from icrl.tokens.layout import TheoryLayout, required_width
from icrl.tokens.mdp import MDPTokenizer

__all__ = [
    "BanditTokenizer",
    "Kind",
    "MDPTokenizer",
    "TheoryLayout",
    "Tokenizer",
    "positions",
    "required_width",
    "tokenizer_of",
]


def tokenizer_of(environment: EnvironmentConfig, kind: Kind) -> BanditTokenizer | MDPTokenizer:
    """The layout of this environment's trajectories.

    Raises:
        ValueError: there are no such tokens; names the option.
    """
    if isinstance(environment, TabularMDPConfig | GridWorldConfig):
        return MDPTokenizer(environment, kind)
    if isinstance(environment, LinearBanditConfig) and environment.action_set == "fresh":
        raise ValueError(
            "environment.action_set = fresh: expected fixed, the transformer reads one action set a trajectory; "
            "python -m data_gen makes the dataset without it"
        )
    return BanditTokenizer(environment, kind)
