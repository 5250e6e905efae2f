"""What heads and neurons are used for: the primitives every construction is written in.

i is the 1-based index of a token, n the index of the last. Each adds heads or neurons to a layer. Attention writes on
top of what a coordinate holds, and so does the MLP, which reads what attention has written; two primitives of one layer
may write to the same place.

Position terms come first in every score: at j = i they cancel exactly before the rest is added, so that a gate costs no
bits in float32 where the score is summed in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from icrl.constructions.form import Form
from icrl.constructions.layer import Layer


def add_share(layer: Layer, value: Form, into: Form) -> None:
    """h_i += (1/i) value h_i: one head with the score 1 - i + j = 1{j = i} (own-token gate)."""
    s = layer.stream
    layer.head(Form.cat(-s.index, s.one, s.one), Form.cat(s.one, s.index, s.one), value, into)


def add(layer: Layer, value: Form, into: Form) -> None:
    """h_i += value h_i by attention: one head with the score -i^2 + j^2 + i = i 1{j = i} (own-token gate)."""
    s = layer.stream
    layer.head(Form.cat(-s.square, s.one, s.index), Form.cat(s.one, s.square, s.one), value, into)


def multiply_by_index(layer: Layer, value: Form, into: Form, last: int, constant: float | None = None) -> None:
    """h_i += i (value h_i): one head with the score -C i^2 + C j^2 + i^2 = i^2 1{j = i} for every i <= n = `last`.

    C is `constant`, by default n. ValueError when C is below n^2 / (2n - 1): a token would see the one before it.
    """
    s = layer.stream
    gate = float(last) if constant is None else constant
    _require(gate, last * last / (2 * last - 1), f"multiply by i up to i = {last}")
    layer.head(Form.cat(-gate * s.square, s.one, s.square), Form.cat(s.one, gate * s.square, s.one), value, into)


def add_product(
    layer: Layer, x: Form, y: Form, into: Form, *, bound: float, gate: float | None = None, positive: bool = False
) -> None:
    """h_i += <x h_i, y h_i>, written to the one form `into`: two heads with the scores B (j - i) +- <x h_i, y h_j>.

    `bound` is the largest |<x h_i, y h_j>| for j < i, B = `gate` the gate constant, by default the next power of two.
    positive: <x h_i, y h_i> >= 0, one head is enough. ValueError when B is below `bound`.
    """
    add_scaled_product(layer, x, y, layer.stream.index, into, bound=bound, gate=gate, positive=positive)


def add_scaled_product(
    layer: Layer,
    x: Form,
    y: Form,
    value: Form,
    into: Form,
    *,
    bound: float,
    gate: float | None = None,
    positive: bool = False,
) -> None:
    """h_i += <x h_i, y h_i> (value h_i) / i, written to `into` [c] as value [c] is; the arguments of `add_product`.

    value = i makes it the product, value = i^2 the product times i.
    """
    s = layer.stream
    constant = s.to_power_of_two(bound) if gate is None else gate
    _require(constant, bound, "product of two parts of a token")
    key = Form.cat(s.one, constant * s.index, y)
    for sign in (1.0,) if positive else (1.0, -1.0):
        layer.head(Form.cat(-constant * s.index, s.one, sign * x), key, value, sign * into)


def add_relu(layer: Layer, x: Form, into: Form, *, bound: float, gate: float | None = None) -> None:
    """h_i += relu(x h_i), x one form, by attention: one head of a product with 1; `bound`: the largest x h_i."""
    add_product(layer, x, layer.stream.one, into, bound=bound, gate=gate, positive=True)


def add_mean(layer: Layer, x: Form, y: Form, value: Form, into: Form, *, positive: bool = False) -> None:
    """h_i += (1/i) sum_{j <= i} <x h_i, y h_j> value h_j: two heads; with positive scores one."""
    for sign in (1.0,) if positive else (1.0, -1.0):
        layer.head(sign * x, y, value, sign * into)


def add_sum(layer: Layer, y: Form, value: Form, into: Form, *, positive: bool = False) -> None:
    """h_i += sum_{j <= i} (y h_j) value h_j without 1/i, y one form: the score is i (y h_j)."""
    add_mean(layer, layer.stream.index, y, value, into, positive=positive)


def update(layer: Layer, change: Form, into: Form) -> None:
    """h += change h by the MLP, x = relu(x) - relu(-x): two neurons a row."""
    layer.neurons(Form.cat(change, -change), Form.cat(into, -into))


def piecewise_linear(layer: Layer, argument: Form, knots: Sequence[float], values: Sequence[float], into: Form) -> None:
    """h += f(argument h) into, f linear between the points (knots, values) and constant outside them.

    f(x) = f(x_1) + sum_j (s_j - s_{j-1}) relu(x - x_j), s_j the slope after knot j, s_0 = 0 = s after the last: one
    neuron a knot, and one for f(x_1). Coefficients are differences of slopes (erratum E1). ValueError unless the knots
    increase.
    """
    if any(a >= b for a, b in pairwise(knots)):
        raise ValueError("knots: expected increasing numbers")
    one = layer.stream.one
    slopes = [(values[j + 1] - values[j]) / (knots[j + 1] - knots[j]) for j in range(len(knots) - 1)]
    if values[0]:
        layer.neurons(one, values[0] * into)
    for knot, (before, after) in zip(knots, pairwise([0.0, *slopes, 0.0]), strict=True):
        layer.neurons(argument - knot * one, (after - before) * into)


def _require(gate: float, bound: float, what: str) -> None:
    if not gate >= bound:
        raise ValueError(f"gate constant {gate:g}: expected at least {bound:g} ({what}); raise it or leave it out")
