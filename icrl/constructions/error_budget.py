"""What moves the log-probabilities of soft LinUCB in weights, and what is left of a tolerance for each part.

The index of an action is <w, a> + alpha sqrt(a' A^{-1} a), over the temperature. Three things move it: the solver stops
(A X = I + E, |E| = residual), chords stand for the square root, and numbers are rounded. The sizes of the layers, what
is guaranteed and the refusal of a tolerance that `dtype` does not reach all come from here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from icrl.constructions.problem import RidgeProblem
from icrl.constructions.roots import square_root_error, square_root_pieces

SLACK = 1.01
"""How far beyond its bound an approximate number may lie."""

LEAST_RESIDUAL = 2.0**-50
"""The smallest residual that is asked of a solver: its schedule is worked out in float64."""


@dataclass(frozen=True)
class ErrorBudget:
    """How errors of the parts reach the log-probabilities, whatever the history."""

    problem: RidgeProblem
    confidence: float
    temperature: float
    dtype: torch.dtype
    tolerance: float

    def __post_init__(self) -> None:
        """ValueError when rounding alone may cost more than 1 / 1.05 of the tolerance, whatever the sizes."""
        if self.tolerance < 1.05 * self.floor:
            raise ValueError(
                f"tolerance = {self.tolerance:g}: {self.dtype} reaches {1.05 * self.floor:.2g} with condition number "
                f"{self.problem.condition:.3g}, confidence {self.confidence:g} and temperature {self.temperature:g}; "
                "raise it or take torch.float64"
            )

    @property
    def largest_width(self) -> float:
        """The end of the last chord, beyond every a' A^{-1} a."""
        return SLACK * self.problem.width_bound

    @property
    def per_residual(self) -> float:
        """Largest |change of log p| for A X = I + E with |E| = 1.

        <a, A^{-1/2} E A^{-1/2} M' r> is at most |E| sqrt(a' A^{-1} a) |r|, and log p moves by at most the range of the
        changes of the logits, twice the largest.
        """
        root = math.sqrt(self.problem.width_bound)
        mean = root * self.problem.reward_bound * math.sqrt(self.problem.horizon)
        return 2 * (mean + self.confidence * root) / self.temperature

    @property
    def per_root(self) -> float:
        """Largest |change of log p| for chords 1 below the square root: a shift of all logits changes nothing."""
        return self.confidence / self.temperature

    @property
    def rounding(self) -> float:
        """What rounding costs without the chords: eps kappa of an index of size R + alpha B_a / sqrt(ridge)."""
        size = self.problem.reward_bound + self.confidence * math.sqrt(self.problem.width_bound)
        return self._eps * self.problem.condition * size / self.temperature

    @property
    def floor(self) -> float:
        """The least that rounding and the best number of chords cost together."""
        return self.rounding + self._least_chords

    def chords(self, pieces: int) -> float:
        """What `pieces` chords cost: their distance e from the root, and rounding.

        The first neuron holds x / 4e, up to largest_width / 4e, and the others take nearly all of it back: eps times
        that is what remains. So more chords are not always better.
        """
        error = square_root_error(self.largest_width, pieces)
        return self.per_root * (error + self._eps * self.largest_width / (4 * error))

    def pieces(self) -> int:
        """The fewest chords that cost no more than their share: what they need, and half of what is left."""
        if self.per_root == 0:
            return 1
        share = (self._least_chords + self._left / 2) / self.per_root
        # the larger of the two e with e + eps x / 4e = share; the share is above the least of that sum
        error = (share + math.sqrt(share**2 - self._eps * self.largest_width)) / 2
        return square_root_pieces(self.largest_width, error)

    def residual(self) -> float:
        """The residual that the solver may leave: half of what rounding and chords do not need."""
        return max(LEAST_RESIDUAL, self._left / 2 / self.per_residual)

    def guaranteed(self, residual: float, pieces: int) -> float:
        """Largest |change of log p| with this residual and so many chords, rounding included."""
        return self.per_residual * residual + self.chords(pieces) + self.rounding

    @property
    def _eps(self) -> float:
        return torch.finfo(self.dtype).eps

    @property
    def _least_chords(self) -> float:
        """The least of `chords`, at e = sqrt(eps largest_width) / 2."""
        return self.per_root * math.sqrt(self._eps * self.largest_width)

    @property
    def _left(self) -> float:
        return self.tolerance - self.floor
