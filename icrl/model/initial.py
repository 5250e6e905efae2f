"""How a linear map starts."""

import torch
from torch import nn


def normal(part: nn.Linear, std: float, generator: torch.Generator) -> None:
    """Weights of this standard deviation from `generator`, biases 0."""
    with torch.no_grad():
        part.weight.normal_(0, std, generator=generator)
        part.bias.zero_()
