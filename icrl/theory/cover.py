"""How many functions a class of transformers holds: log N(rho), with every constant.

A class is a ball {|||theta||| <= B} of P numbers. Where log-probabilities change by at most Lip |||theta - theta'|||,
a rho-cover (Def 4) takes at most (1 + 2 B Lip / rho)^P of its members: a maximal packing at rho / Lip, by volume.
docs/theory/meters.md derives Lip layer by layer.

Shapes: L layers, M heads, D embed_dim, D' mlp_dim, N tokens, A actions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from icrl.model import Transformer
from icrl.model.frames import PracticalFrame
from icrl.theory.norm import operator_norm

PAPER_CONSTANT = 39
"""c of log N <= c L^2 D (M D + D') log(2 + max{B, L, R} / rho), for rho <= 1 and max{B, R} >= 1."""


@dataclass(frozen=True)
class TheoryClass:
    """Theta_{D,L,M,D',B} of Def 3, clip_R included: preset theory."""

    layers: int
    heads: int
    embed_dim: int
    mlp_dim: int
    norm: float
    """B."""
    radius: float
    """R, which no token outgrows."""

    @property
    def numbers(self) -> int:
        """P = L (3 M D^2 + 2 D D')."""
        return self.layers * self.embed_dim * (3 * self.heads * self.embed_dim + 2 * self.mlp_dim)

    @property
    def log_against_input(self) -> float:
        """ln B_H, one layer against its input: B_H = (1 + B^2/4)(1 + 4/9 B^3 R^2)."""
        B, R = self.norm, self.radius
        return math.log1p(B**2 / 4) + math.log1p(4 / 9 * B**3 * R**2)

    @property
    def against_weights(self) -> float:
        """B_Theta = max{(1 + B^2/4) B^2 R^3, B R (1 + 4/27 B^3 R^2)}, one layer against its weights."""
        B, R = self.norm, self.radius
        return max((1 + B**2 / 4) * B**2 * R**3, B * R * (1 + 4 / 27 * B**3 * R**2))

    @property
    def log_lipschitz(self) -> float:
        """ln Lip, |Delta log p| <= Lip |||Delta theta|||: 2 (B_H^L - 1) / (B_H - 1) B_Theta."""
        return math.log(2 * self.against_weights) + _log_geometric(self.log_against_input, self.layers)

    def log_cover(self, rho: float) -> float:
        """ln N(rho) <= P ln(1 + 2 B Lip / rho)."""
        return _log_cover(self.numbers, self.norm, self.log_lipschitz, rho)


@dataclass(frozen=True)
class PracticalClass:
    """The practical preset with ReLU attention: matrices that act on (n(h); 1), as `icrl.theory.norm` folds them."""

    layers: int
    heads: int
    embed_dim: int
    mlp_dim: int
    norm: float
    """B, of every layer and of both ends."""
    fields: float
    """F >= |(raw fields; 1)| of every token."""
    n_tokens: int
    width: int
    """Raw fields of a token."""
    n_actions: int
    epsilon: float
    """Of LayerNorm, which is 1/sqrt(epsilon)-Lipschitz."""

    @property
    def numbers(self) -> int:
        """P: Q, K of Dh x (D+1) and V of D x (D+1) a head, D outputs' bias, W_1 and W_2; both ends."""
        D, inner = self.embed_dim, self.mlp_dim
        layer = 2 * D * (D + 1) + self.heads * D * (D + 1) + D + inner * (D + 1) + D * (inner + 1)
        ends = D * (self.width + 1) + self.n_tokens * D + self.n_actions * (D + 1)
        return self.layers * layer + ends

    @property
    def _reach(self) -> tuple[float, float]:
        """r = sqrt(D + 1) >= |(n(h); 1)|, and k = 1/sqrt(epsilon), the Lipschitz constant of n."""
        return math.sqrt(self.embed_dim + 1), self.epsilon**-0.5

    @property
    def log_against_input(self) -> float:
        """ln B_H, one layer against its input: B_H = (1 + B^2 k / 4)(1 + 4/9 B^3 r^2 k)."""
        B, (r, k) = self.norm, self._reach
        return math.log1p(B**2 * k / 4) + math.log1p(4 / 9 * B**3 * r**2 * k)

    @property
    def against_weights(self) -> float:
        """B_Theta = max{(1 + B^2 k / 4) max{B^2 r^3, 1}, B r + 1}, one layer against its weights."""
        B, (r, k) = self.norm, self._reach
        return max((1 + B**2 * k / 4) * max(B**2 * r**3, 1.0), B * r + 1)

    @property
    def log_lipschitz(self) -> float:
        """ln Lip: 2 (B k [B_H^L max{F, 1} + (B_H^L - 1) / (B_H - 1) B_Theta] + r)."""
        B, (r, k) = self.norm, self._reach
        through = math.log(max(self.fields, 1.0)) + self.layers * self.log_against_input
        inside = math.log(self.against_weights) + _log_geometric(self.log_against_input, self.layers)
        stream = _log_add(through, inside) + math.log(B * k)
        return math.log(2) + _log_add(stream, math.log(r))

    def log_cover(self, rho: float) -> float:
        """ln N(rho) <= P ln(1 + 2 B Lip / rho)."""
        return _log_cover(self.numbers, self.norm, self.log_lipschitz, rho)


@torch.no_grad()
def class_of(model: Transformer, shown: Tensor, action: Tensor, reward: Tensor) -> TheoryClass | PracticalClass:
    """The smallest class that holds the model: its sizes, its norm, and the largest token of these trajectories.

    The arguments are those of `Transformer.forward`. R is `clip_norm`, and where that is null the largest |h_i| that is
    met before, between and after the layers. Raises ValueError for softmax attention, which Def 1 does not have.
    """
    config = model.config
    if config.attention != "relu":
        raise ValueError(
            f"model.attention = {config.attention}: expected relu, the bound is on the transformers of Def 1; "
            "icrl.theory.operator_norm measures its weights all the same"
        )
    sizes = (config.layers, config.heads, config.embed_dim, config.mlp_dim, operator_norm(model).value)
    if not isinstance(model.frame, PracticalFrame):
        largest = config.clip_norm or max(_longest(h_BND) for h_BND in model.states(shown, action, reward))
        return TheoryClass(*sizes, radius=largest)
    fields = model.tokenizer.encode(shown.to(model.dtype) if shown.is_floating_point() else shown, action, reward)
    norm = model.frame.final_norm
    assert isinstance(norm, nn.LayerNorm)
    return PracticalClass(
        *sizes,
        fields=math.sqrt(_longest(fields) ** 2 + 1),
        n_tokens=model.tokenizer.n_tokens,
        width=model.tokenizer.width,
        n_actions=model.environment.n_actions,
        epsilon=norm.eps,
    )


def paper_log_cover(of: TheoryClass, rho: float) -> float:
    """39 L^2 D (M D + D') ln(2 + max{B, L, R} / rho): the paper's form, at least `of.log_cover(rho)` for rho <= 1."""
    count = of.layers**2 * of.embed_dim * (of.heads * of.embed_dim + of.mlp_dim)
    return PAPER_CONSTANT * count * math.log(2 + max(of.norm, of.layers, of.radius) / rho)


def _log_cover(numbers: int, norm: float, log_lipschitz: float, rho: float) -> float:
    if not rho > 0:
        raise ValueError(f"rho = {rho}: expected a positive number")
    return numbers * _log_add(0.0, math.log(2 * norm) + log_lipschitz - math.log(rho))


def _log_geometric(log_base: float, terms: int) -> float:
    """ln(1 + b + ... + b^(terms - 1)) for b = exp(log_base) > 1."""
    return (terms - 1) * log_base + math.log(-math.expm1(-terms * log_base)) - math.log(-math.expm1(-log_base))


def _log_add(a: float, b: float) -> float:
    """ln(e^a + e^b)."""
    return max(a, b) + math.log1p(math.exp(-abs(a - b)))


def _longest(x_BNw: Tensor) -> float:
    return float(torch.linalg.vector_norm(x_BNw.double(), dim=-1).max())
