"""The objective: log-likelihood of the labels at every round.

Shapes: B trajectories, T rounds, A actions.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


def log_loss(logits_BTA: Tensor, labels_BT: Tensor) -> Tensor:
    """-log Alg_theta(label_t | D_{t-1}, s_t) in nats, [B,T], at least float32 (one term of Eq. 3)."""
    logits = logits_BTA.to(torch.promote_types(logits_BTA.dtype, torch.float32))
    return cross_entropy(logits.flatten(0, 1), labels_BT.flatten().long(), reduction="none").view(labels_BT.shape)
