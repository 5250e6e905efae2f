"""Environments: the prior over them, sampled from counter-based streams, and their batched reward.

Knows no algorithm. Everything is a function of (config, seed, split, trajectory index).
"""

from icrl.envs.linear_bandit import LinearBanditBatch, rewards, sample

__all__ = ["LinearBanditBatch", "rewards", "sample"]
