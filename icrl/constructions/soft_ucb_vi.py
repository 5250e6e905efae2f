"""Soft UCB-VI as explicit weights (Thm 12): counts by attention, tables by MLP, value iteration by own-token products.

Tokens are the paper's: s_h and (a_h, r_h) for h = 1..H and an empty token, for every episode k. Every prediction is
that of `icrl.algorithms.UCBVI` with the same config, up to rounding. Layers, for A <= 4 exactly 2H + 8:

    1-2     copy (s_{h-1}, a_{h-1}, r_{h-1}) into the next state token or the empty token
    3-4     N_h(s, a, s'), N_h(s, a) and reward sums of the episodes before, for every step h
    5       means and bonus: K - 1 neurons a table
    ...     for h = H..1: Q_h = min(H, r + b + P V_{h+1}), then V_h = max_a Q_h
    last 3  Q_h(s_t, .) at the step of the token, over the temperature, into the logits

Shapes: S states, A actions, H steps, K episodes, n = (2H + 1) K tokens.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import torch

from icrl.algorithms.ucb_vi import bonuses
from icrl.config import GridWorldConfig, MDPConfig, TabularMDPConfig, UCBVIConfig
from icrl.constructions.assemble import Construction, assemble
from icrl.constructions.form import Form
from icrl.constructions.layer import Layer
from icrl.constructions.primitives import (
    add,
    add_product,
    add_relu,
    add_scaled_product,
    multiply_by_index,
    piecewise_linear,
)
from icrl.constructions.stream import Stream

EXACT = {torch.float64: 2.0**53, torch.float32: 2.0**24}
"""Whole numbers up to which a dtype holds them all."""


def ucb_vi(environment: MDPConfig, algorithm: UCBVIConfig, dtype: torch.dtype = torch.float64) -> Construction:
    """The transformer that plays soft UCB-VI in these environments; its logits are Q_h(s_t, .) / temperature.

    Raises:
        ValueError: no MDP; a temperature of 0 (the softmax of a transformer is never hard); more tokens than `dtype`
            can count, or a dtype that is neither float64 nor float32.
    """
    if not isinstance(environment, TabularMDPConfig | GridWorldConfig):
        raise ValueError(
            f"environment.kind = {environment.kind}: expected tabular_mdp or grid_world; linucb takes a bandit"
        )
    if dtype not in EXACT:
        raise ValueError(f"dtype = {dtype}: expected float64 or float32, halves do not hold the tokens' indices")
    if algorithm.temperature == 0:
        raise ValueError("temperature = 0: expected above 0, the construction is of soft UCB-VI; lower it as you like")
    n_tokens = (2 * environment.episode_length + 1) * environment.episodes
    most = round(EXACT[dtype] ** (1 / 3))
    if n_tokens > most:
        raise ValueError(
            f"(2 H + 1) K = {n_tokens} tokens: expected at most {most} in {dtype}, whose gates count to n^3 exactly"
        )
    S, A, H, K = environment.n_states, environment.n_actions, environment.episode_length, environment.episodes
    theorem = {
        "layers": 2 * H + 8,
        "heads": 10 * (H - 1) * S * S * A + 20 * H * S * A,
        "mlp_dim": (K + 1) ** 2 * ((H - 1) * S * S * A + 2 * H * S * A),
    }
    choices = {"tokens": n_tokens, "max_layers": max_layers(A)}
    layers = _Writer(environment, algorithm).layers()
    return assemble(environment, layers, dtype, choices=choices, theorem=theorem)


def mdp_stream(environment: MDPConfig) -> Stream:
    """The `paper` tokens of an MDP with the scratch of the construction; blocks of step h end in `_h`."""
    S, A, H = environment.n_states, environment.n_actions, environment.episode_length
    scratch = {"previous_share": S + A + 1, "previous": S + A + 1}
    for h in range(1, H + 1):
        follows = S * A * S if h < H else 0
        for name in ("visits", "rewards"):
            scratch |= {f"{name}_share_{h}": S * A, f"{name}_{h}": S * A}
        scratch |= {f"follows_share_{h}": follows, f"follows_{h}": follows, f"transition_{h}": follows}
        scratch |= {f"optimistic_reward_{h}": S * A, f"backup_{h}": S * A if h < H else 0}
        scratch |= {f"value_{h}": S * A, f"rounds_{h}": sum(_rounds(A)) * S, f"best_{h}": S}
    scratch |= {"asked": H * A, "chosen_share": A}
    fields = {"action": A, "reward": 1, "state": S}
    return Stream(fields, A, scratch, ("episode", "step", "asks", "index", "square", "one"))


def max_layers(n_actions: int) -> int:
    """Layers that the maximum over A takes: attention and MLP halve the rivals in turn."""
    return max(1, math.ceil(math.ceil(math.log2(n_actions)) / 2))


def _rounds(n_actions: int) -> list[int]:
    """Rivals left after each halving but the last."""
    left = [n_actions]
    while left[-1] > 1:
        left.append(-(-left[-1] // 2))
    return left[1:-1]


class _Writer:
    """Writes the layers of one construction in their order."""

    def __init__(self, environment: TabularMDPConfig | GridWorldConfig, algorithm: UCBVIConfig) -> None:
        self.S, self.A = environment.n_states, environment.n_actions
        self.H, self.K = environment.episode_length, environment.episodes
        self.n = (2 * self.H + 1) * self.K
        self.temperature = algorithm.temperature
        # beyond the ceiling H a bonus changes nothing
        self.bonus = [min(float(b), float(self.H)) for b in bonuses(algorithm, environment)]
        self.stream = mdp_stream(environment)

    def layers(self) -> Iterator[Layer]:
        yield self._copy()
        yield self._whole(["previous"])
        yield self._count()
        counted = [f"{name}_{h}" for h in range(1, self.H + 1) for name in ("visits", "rewards", "follows")]
        yield self._whole([name for name in counted if len(self.stream[name])])
        yield self._tables()
        for h in range(self.H, 0, -1):
            yield self._backup(h)
            yield from self._maximum(h)
        yield self._ask()
        yield self._choose()
        layer = Layer(self.stream)
        multiply_by_index(layer, (1 / self.temperature) * self.stream["chosen_share"], self.stream["logits"], self.n)
        yield layer

    def _pair(self, block: str, s: int, a: int) -> Form:
        return self.stream[block][s * self.A + a]

    def _row(self, block: str, s: int, a: int) -> Form:
        """The S entries of the pair (s, a)."""
        first = (s * self.A + a) * self.S
        return self.stream[block][first : first + self.S]

    def _copy(self) -> Layer:
        """(1/i) (s, a, r) of the step before: scores (3, 2, 1) - (2, 1, 0) - (1, 0, 0) on j = i, i - 1, i - 2.

        Queries without `asks` and keys of other episodes get -4 at least.
        """
        layer, s = Layer(self.stream), self.stream
        layer_value = Form.cat(s["state"], s["action"], s["reward"])
        for reach, sign in ((3, 1.0), (2, -1.0), (1, -1.0)):
            query = Form.cat(-1.0 * s.index, s.one, s["episode"] + s.one - s["asks"], 4.0 * s.one)
            key = Form.cat(s.one, s.index + reach * s.one, -4.0 * s.one, s["episode"])
            layer.head(query, key, layer_value, sign * s["previous_share"])
        return layer

    def _whole(self, blocks: list[str]) -> Layer:
        """What attention left as a share of 1/i, times i, in its own place."""
        layer = Layer(self.stream)
        shares = [name.replace("_", "_share_", 1) if "_" in name else f"{name}_share" for name in blocks]
        value, into = (Form.cat(*(self.stream[name] for name in names)) for names in (shares, blocks))
        multiply_by_index(layer, value, into, self.n)
        return layer

    def _count(self) -> Layer:
        """Shares 1/i of N_h(s, a), of its rewards and of N_h(s, a, s'), over the episodes before that of token i."""
        layer, s = Layer(self.stream), self.stream
        previous = s["previous"]
        states, actions, reward = previous[: self.S], previous[self.S : self.S + self.A], previous[self.S + self.A :]
        for h in range(1, self.H + 1):
            for state in range(self.S):
                for action in range(self.A):
                    pair = states[state] + actions[action]
                    into = Form.cat(*(self._pair(f"{name}_share_{h}", state, action) for name in ("visits", "rewards")))
                    self._count_matches(layer, h, pair, 2, Form.cat(s.one, reward), into)
                    if h < self.H:
                        for following, place in enumerate(self._row(f"follows_share_{h}", state, action)):
                            match = pair + s["state"][following]
                            self._count_matches(layer, h, match, 3, s.one, place)
        return layer

    def _count_matches(self, layer: Layer, h: int, match: Form, wanted: int, value: Form, into: Form) -> None:
        """Ten heads: (1/i) sum of `value` over the tokens j of step h + 1 in earlier episodes with match_j = wanted.

        1{h_j = h + 1} = 1 - relu(h + 1 - h_j) + relu(h - h_j) - relu(h_j - h - 1) + relu(h_j - h - 2), and the same
        over the token's own episode is taken away. A miss costs B = 2H + 2, more than any of these terms.
        """
        s = self.stream
        miss = 2.0 * self.H + 2
        step, one = s["step"], s.one
        terms = (
            (1.0, one),
            (-1.0, (h + 1) * one - step),
            (1.0, h * one - step),
            (-1.0, step - (h + 1) * one),
            (1.0, step - (h + 2) * one),
        )
        for sign, term in terms:
            found = miss * match - (miss * (wanted + 1)) * one + term
            layer.head(Form.cat(miss * s["asks"], one), Form.cat(one, found), value, sign * into)
            own = Form.cat(one, found + miss * s["episode"], -miss * one)
            layer.head(Form.cat(miss * s["asks"], one, s["episode"]), own, value, -sign * into)

    def _tables(self) -> Layer:
        """P_h(s' | s, a), and r_h(s, a) + b_h(s, a): x -> x / N and b(N), two neurons for each N they share.

        x 1{N <= y} = relu(x + C (y - N)) - relu(C (y - N)) for 0 <= x <= N and C >= y + 1, and x / N is their sum over
        y with weights 1 / y - 1 / (y + 1), the last 1 / y. The paper's tables of (N - y)^2 need squares by attention
        (their gate K^2: erratum E5), and large numbers that cancel cost them a digit in float32.
        """
        layer, s = Layer(self.stream), self.stream
        most = self.K - 1
        for h in range(1, self.H + 1):
            for state in range(self.S):
                for action in range(self.A):
                    visits = self._pair(f"visits_{h}", state, action)
                    reward = self._pair(f"optimistic_reward_{h}", state, action)
                    tables = [(self._pair(f"rewards_{h}", state, action), reward)]
                    if h < self.H:
                        follows = self._row(f"follows_{h}", state, action)
                        tables += zip(follows, self._row(f"transition_{h}", state, action), strict=True)
                    for y in range(1, most + 1):
                        weight = 1 / y - (1 / (y + 1) if y < most else 0.0)
                        room = (y + 1.0) * (float(y) * s.one - visits)
                        for total, mean in tables:
                            layer.neurons(total + room, weight * mean)
                        layer.neurons(room, -weight * functools.reduce(Form.__add__, (mean for _, mean in tables)))
                    piecewise_linear(layer, visits, range(self.K), self.bonus[: self.K], reward)
        return layer

    def _backup(self, h: int) -> Layer:
        """Q_h(s, a) = min(H, r + b + <P_h(. | s, a), V_{h+1}>) = relu(x) - relu(x - H)."""
        layer, s = Layer(self.stream), self.stream
        if h < self.H:
            best = s[f"best_{h + 1}"]
            for state in range(self.S):
                for action in range(self.A):
                    share, into = self._row(f"transition_{h}", state, action), self._pair(f"backup_{h}", state, action)
                    add_product(layer, best, share, into, bound=3.0 * self.H, positive=True)
        target = s[f"optimistic_reward_{h}"]
        if h < self.H:
            target = target + s[f"backup_{h}"]
        ceiling = s.constants(*[float(self.H)] * len(target))
        layer.neurons(Form.cat(target, target - ceiling), Form.cat(s[f"value_{h}"], -1.0 * s[f"value_{h}"]))
        return layer

    def _maximum(self, h: int) -> Iterator[Layer]:
        """V_h(s) = max_a Q_h(s, a): pairs x, y >= 0 become x + relu(y - x), by attention and by MLP in turn."""
        rivals = [[self._pair(f"value_{h}", s, a) for s in range(self.S)] for a in range(self.A)]
        room = iter(self.stream[f"rounds_{h}"])
        for number in range(max_layers(self.A)):
            layer = Layer(self.stream)
            if len(rivals) > 2:
                rivals = self._halve(layer, rivals, room)
            last = number == max_layers(self.A) - 1
            winners = [list(self.stream[f"best_{h}"])] if last else None
            rivals = self._halve_by_mlp(layer, rivals, winners or self._places(len(rivals), room))
            yield layer

    def _places(self, rivals: int, room: Iterator[Form]) -> list[list[Form]]:
        return [[next(room) for _ in range(self.S)] for _ in range(-(-rivals // 2))]

    def _halve(self, layer: Layer, rivals: list[list[Form]], room: Iterator[Form]) -> list[list[Form]]:
        winners = self._places(len(rivals), room)
        kept = Form.cat(*(x for first in rivals[::2] for x in first))
        add(layer, kept, Form.cat(*(place for places in winners for place in places)))
        for first, second, places in zip(rivals[::2], rivals[1::2], winners, strict=False):
            for x, y, place in zip(first, second, places, strict=True):
                add_relu(layer, y - x, place, bound=float(self.H))
        return winners

    @staticmethod
    def _halve_by_mlp(layer: Layer, rivals: list[list[Form]], winners: list[list[Form]]) -> list[list[Form]]:
        for first, places in zip(rivals[::2], winners, strict=True):
            layer.neurons(Form.cat(*first), Form.cat(*places))
        for first, second, places in zip(rivals[::2], rivals[1::2], winners, strict=False):
            for x, y, place in zip(first, second, places, strict=True):
                layer.neurons(y - x, place)
        return winners

    def _ask(self) -> Layer:
        """Q_h(s_t, a) for every step h: <one-hot s_t, Q_h(., a)>."""
        layer, s = Layer(self.stream), self.stream
        for h in range(1, self.H + 1):
            for a in range(self.A):
                column = Form.cat(*(self._pair(f"value_{h}", state, a) for state in range(self.S)))
                into = s["asked"][(h - 1) * self.A + a]
                add_product(layer, s["state"], column, into, bound=float(self.H), positive=True)
        return layer

    def _choose(self) -> Layer:
        """(1/i) Q_{h_i}(s_t, a): the sum over h less its parts above and below the token's own step.

        For h > h_i relu(z + H (h - h_i - 1)) - relu(H (h - h_i - 1)) = z, and both are 0 otherwise, as 0 <= z <= H.
        """
        layer, s = Layer(self.stream), self.stream
        high = float(self.H)
        bound = high + high * high
        for h in range(1, self.H + 1):
            above = high * ((h - 1) * s.one - s["step"])
            below = high * (s["step"] - (h + 1) * s.one)
            for a in range(self.A):
                asked, into = s["asked"][(h - 1) * self.A + a], s["chosen_share"][a]
                parts = ((1.0, asked), (-1.0, asked + above), (1.0, above), (-1.0, asked + below), (1.0, below))
                for sign, part in parts:
                    add_scaled_product(layer, part, s.one, s.one, sign * into, bound=bound, positive=True)
        return layer
