"""Thompson sampling for Bernoulli bandits as explicit weights: exact counts, and a table of all that can be counted.

Layer 1 counts plays and successes of every action by sums without 1/i; layer 2 squares the counts' norm by attention
and looks them up: relu(1 - |n - y|^2) is 1 at n = y and 0 at every other whole n.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from icrl.best_arm import BetaBest
from icrl.config import BernoulliBanditConfig, EnvironmentConfig
from icrl.constructions.assemble import Construction, assemble
from icrl.constructions.form import Form
from icrl.constructions.layer import Layer
from icrl.constructions.primitives import add_product, add_sum
from icrl.constructions.stream import bandit_stream

MOST_NEURONS = 2**16
"""The largest D' of a model's config."""


def beta_thompson(environment: EnvironmentConfig, *, dtype: torch.dtype = torch.float64) -> Construction:
    """The transformer whose policy is P(action k is best) under the Beta posteriors, but for rounding.

    Two layers, A + 1 heads and binomial(T - 1 + 2A, 2A) neurons, one for each history of successes and failures.

    Raises:
        ValueError: another environment, more neurons than a model may have, float16 and its like.
    """
    if not isinstance(environment, BernoulliBanditConfig):
        raise ValueError(f"environment.kind = {environment.kind}: expected bernoulli_bandit")
    if dtype not in (torch.float64, torch.float32):
        raise ValueError(f"dtype = {dtype}: expected float64 or float32")
    A, T = environment.n_actions, environment.horizon
    neurons = n_tallies(A, T)
    if neurons > MOST_NEURONS:
        longest = max((t for t in range(1, T) if n_tallies(A, t) <= MOST_NEURONS), default=0)
        raise ValueError(
            f"environment.horizon = {T}: {neurons} different tallies of {A} actions, expected at most {MOST_NEURONS}; "
            f"T <= {longest} has room"
        )
    stream = bandit_stream(A, A, {"plays": A, "successes": A, "norm": 1})
    tallies = Form.cat(stream["successes"], stream["plays"] - stream["successes"])
    count, table = Layer(stream), Layer(stream)
    told = Form.cat(stream.one, stream["reward"])
    for k in range(A):
        add_sum(count, stream["action"][k], told, Form.cat(stream["plays"][k], stream["successes"][k]), positive=True)
    add_product(table, tallies, tallies, stream["norm"], bound=float(T * T), positive=True)
    y = np.array(list(_tallies(2 * A, T - 1)))
    log_p = np.log(BetaBest(A, T).probabilities(y[:, :A], y[:, A:]))
    for tally, values in zip(y.tolist(), log_p, strict=True):
        distance = stream["norm"] + sum(value * value for value in tally) * stream.one
        for value, part in zip(tally, tallies, strict=True):
            distance = distance - 2.0 * value * part
        table.neurons(stream.one - distance, _weighted(stream["logits"], values))
    return assemble(
        environment, [count, table], dtype, method="table", choices={"tallies": neurons}, theorem={"layers": 2}
    )


def n_tallies(n_actions: int, horizon: int) -> int:
    """Tallies of successes and failures before round T: binomial(T - 1 + 2A, 2A)."""
    return math.comb(horizon - 1 + 2 * n_actions, 2 * n_actions)


def _tallies(width: int, total: int) -> Iterator[tuple[int, ...]]:
    """All tuples of `width` whole numbers with a sum of at most `total`."""
    if width == 0:
        yield ()
        return
    for first in range(total + 1):
        for rest in _tallies(width - 1, total - first):
            yield first, *rest


def _weighted(logits: Form, values: npt.NDArray[np.float64]) -> Form:
    """One direction: values [A] along the logits [A]."""
    total = Form.zeros(1)
    for value, logit in zip(values.tolist(), logits, strict=True):
        total = total + value * logit
    return total
