"""The square root as a piecewise linear function: knots that spread the error evenly."""

from __future__ import annotations

import math


def square_root_knots(largest: float, pieces: int) -> tuple[list[float], list[float]]:
    """Knots x_j and values sqrt(x_j) of a chain of `pieces` chords from 0 to `largest`.

    With u_j = 2 e j (j + 1) and x_j = u_j^2 every chord lies at most e below the root, and touches that once:
    (u_{j+1} - u_j)^2 / (4 (u_{j+1} + u_j)) = e. The last u_j is sqrt(largest), so e = sqrt(largest) / (2 n (n + 1)).
    """
    error = square_root_error(largest, pieces)
    values = [2 * error * j * (j + 1) for j in range(pieces + 1)]
    return [value * value for value in values], values


def square_root_error(largest: float, pieces: int) -> float:
    """e, the most that `pieces` chords lie below the root on [0, largest]."""
    return math.sqrt(largest) / (2 * pieces * (pieces + 1))


def square_root_pieces(largest: float, error: float) -> int:
    """The fewest chords that lie at most `error` below the root on [0, largest]."""
    return max(1, math.ceil((math.sqrt(1 + 2 * math.sqrt(largest) / error) - 1) / 2))
