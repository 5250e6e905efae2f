"""Meters of the theory: norms against the matrices themselves, Lipschitz bounds against perturbed weights."""

import copy
import dataclasses
import math
import re

import numpy as np
import pytest
import torch

from icrl import theory
from icrl.config import (
    BernoulliBanditConfig,
    GaussianBanditConfig,
    LinearBanditConfig,
    ModelConfig,
    TabularMDPConfig,
)
from icrl.constructions import linucb
from icrl.model import Transformer
from icrl.model.practical import PracticalBlock
from icrl.model.theory import TheoryBlock
from icrl.theory.norm import folded

BANDIT = LinearBanditConfig(dim=2, n_actions=3, horizon=4)


def transformer(seed=0, **options):
    sizes = {"layers": 2, "heads": 2, "embed_dim": 16, "mlp_dim": 5}
    return Transformer(ModelConfig(**sizes | options), BANDIT, seed=seed).double()


def history(n, seed=0):
    g = torch.Generator().manual_seed(seed)
    shown, reward = torch.rand(n, 3, 2, generator=g), torch.randn(n, 4, generator=g)
    return shown, torch.randint(0, 3, (n, 4), generator=g), reward


def test_preset_theory_has_the_norm_of_its_definition():
    model = transformer(preset="theory")
    found = theory.operator_norm(model)
    block = model.blocks[1]
    q, k, v = (np.linalg.norm(x.detach().numpy(), 2, (1, 2)) for x in (block.query, block.key, block.value))
    mlp = sum(np.linalg.norm(x.detach().numpy(), 2) for x in (block.mlp_in, block.mlp_out))
    assert found.layers[1] == pytest.approx(max(q.max(), k.max()) + v.sum() + mlp)
    assert found.value == max(found.layers) == model.operator_norm()
    assert found.ends == ()
    construction = linucb(BANDIT, method="log_depth", ridge_layers=3, knots=4)
    assert theory.operator_norm(construction).value == pytest.approx(construction.report.operator_norm)


def test_preset_practical_is_its_folded_matrices():
    """A layer computed from the matrices whose norms are measured is the layer."""
    model = transformer()
    block = model.blocks[0]
    with torch.no_grad():
        for p in block.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(3)))
    h = torch.randn(1, 6, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def normalised(x):
        centred = x - x.mean(-1, keepdim=True)
        return torch.cat([centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt(), x.new_ones(1, 6, 1)], -1)

    with torch.no_grad():
        q, k, v = folded(block.qkv, block.attention_norm).view(3, 2, 8, 17)
        v = block.output.weight.view(16, 2, 8).transpose(0, 1) @ v
        u = normalised(h)[0]
        scores = torch.relu((u @ q.mT) @ (u @ k.mT).mT / 8**0.5).tril() / torch.arange(1, 7)[:, None]
        g = h + (scores @ (u @ v.mT)).sum(0) + block.output.bias
        inner = torch.relu(normalised(g) @ folded(block.mlp_in, block.mlp_norm).mT)
        expected = g + inner @ block.mlp_out.weight.mT + block.mlp_out.bias
        torch.testing.assert_close(block(h, None), expected, rtol=1e-10, atol=1e-10)
        score = max(torch.linalg.matrix_norm(x, 2).max() for x in (q, k)) / 8**0.25
        w1 = torch.linalg.matrix_norm(folded(block.mlp_in, block.mlp_norm), 2)
        w2 = torch.linalg.matrix_norm(torch.cat([block.mlp_out.weight, block.mlp_out.bias[:, None]], 1), 2)
        total = score + torch.linalg.matrix_norm(v, 2).sum() + w1 + w2 + block.output.bias.norm()
    found = theory.operator_norm(model)
    assert found.layers[0] == pytest.approx(total.item())
    assert found.value == max(*found.layers, *found.ends)
    assert "LayerNorm" in found.what


@pytest.mark.parametrize("preset", ["theory", "practical"])
@pytest.mark.parametrize("size", [1e-4, 1e-2, 0.3])
def test_no_perturbation_moves_further_than_the_lipschitz_constant(preset, size):
    options = {"preset": preset} | ({"clip_norm": 3.0} if preset == "theory" else {})
    data = history(8)
    for seed in range(5):
        model = transformer(seed, **options)
        other, g = copy.deepcopy(model), torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in other.parameters():
                p.add_(size * torch.randn(p.shape, generator=g, dtype=p.dtype))
            moved = (model(*data).log_softmax(-1) - other(*data).log_softmax(-1)).abs().max().item()
        first, second = theory.class_of(model, *data), theory.class_of(other, *data)
        both = first if first.norm > second.norm else second
        distance = _distance(model, other)
        assert 0 < moved <= math.exp(both.log_lipschitz) * distance


STEEPEST = {
    # shares of B that |Q| = |K|, |V|, |W_1| and |W_2| take, and what moves: the input h, or one of them
    "attention against its input": ((2 / 3, 1 / 3, 0, 0), "h"),
    "MLP against its input": ((0, 0, 1 / 2, 1 / 2), "h"),
    "attention against V": ((1, 0, 0, 0), "value"),
    "attention against Q and K": ((1 / 2, 1 / 2, 0, 0), "score"),
    "MLP against W_1": ((0, 0, 0, 1), "mlp_in"),
    "MLP against W_2, behind attention": ((1 / 3, 1 / 6, 1 / 2, 0), "mlp_out"),
}


@pytest.mark.parametrize(("B", "R"), [(1.0, 1.0), (2.0, 1.5), (0.5, 4.0)])
@pytest.mark.parametrize("case", STEEPEST)
def test_one_layer_is_as_steep_as_its_constants_say(case, B, R):
    """On one token along the first coordinate; all matrices act on it alone."""
    shares, moving = STEEPEST[case]
    block = TheoryBlock(ModelConfig(preset="theory", layers=1, heads=1, embed_dim=4, mlp_dim=1), 0).double()
    h, step = torch.zeros(1, 1, 4, dtype=torch.float64), 1e-6
    parts = {"score": (block.query, block.key), "value": (block.value,)}
    parts |= {"mlp_in": (block.mlp_in,), "mlp_out": (block.mlp_out,)}
    with torch.no_grad():
        for share, matrices in zip(shares, parts.values(), strict=True):
            for matrix in matrices:
                matrix.zero_()
                matrix[..., 0, 0] = share * B
        assert block.operator_norm() == pytest.approx(B)
        h[..., 0] = R - step
        before = block(h, None)
        if moving == "h":
            h[..., 0] += step
        else:
            for matrix in parts[moving]:
                matrix[..., 0, 0] += step
        moved = float((block(h, None) - before).norm()) / step
    of = theory.TheoryClass(1, 1, 4, 1, norm=B, radius=R)
    bound = math.exp(of.log_against_input) if moving == "h" else of.against_weights
    assert bound / 20 < moved <= bound * (1 + 1e-4)


def test_the_norm_of_a_practical_layer_is_as_steep_as_its_constant_says():
    """A token that is all but constant is what LayerNorm blows up most, by 1 / sqrt(epsilon)."""
    B, step = 0.1, 1e-6
    block = PracticalBlock(ModelConfig(layers=1, heads=1, embed_dim=4, mlp_dim=1), 0).double()
    away = torch.tensor([0.5, -0.5, 0.5, -0.5], dtype=torch.float64)
    with torch.no_grad():
        for linear in (block.qkv, block.output, block.mlp_in, block.mlp_out):
            linear.weight.zero_()
            linear.bias.zero_()
        block.mlp_in.weight[0] = B / 2 * away
        block.mlp_out.weight[:, 0] = B / 2 * away
        h = torch.ones(1, 1, 4, dtype=torch.float64)
        moved = float((block(h + step * away, None) - block(h, None)).norm()) / step
    of = theory.PracticalClass(1, 1, 4, 1, B, fields=1.0, n_tokens=1, width=1, n_actions=2, epsilon=1e-5)
    bound = math.exp(of.log_against_input)
    assert moved == pytest.approx(1 + B**2 / 4 / math.sqrt(1e-5), rel=1e-4)
    assert bound / 2 < moved <= bound


def _distance(model, other):
    """|||theta - theta'|||, with preset practical of the folded matrices: at most the norm of all differences."""
    if model.config.preset == "theory":
        difference = copy.deepcopy(model)
        with torch.no_grad():
            for p, a, b in zip(difference.parameters(), model.parameters(), other.parameters(), strict=True):
                p.copy_(a - b)
        return difference.operator_norm()
    norm = torch.linalg.matrix_norm

    def parts(x):
        for block in x.blocks:
            rows = folded(block.qkv, block.attention_norm).view(3, 2, 8, 17)
            values = block.output.weight.view(16, 2, 8).transpose(0, 1) @ rows[2]
            inner = folded(block.mlp_in, block.mlp_norm)
            outer = torch.cat([block.mlp_out.weight, block.mlp_out.bias[:, None]], 1)
            yield rows[:2] / 8**0.25, values, inner, outer, block.output.bias

    with torch.no_grad():
        layers = [
            norm(a[0] - b[0], 2).max() + norm(a[1] - b[1], 2).sum() + sum(norm(a[i] - b[i], 2) for i in (2, 3))
            + (a[4] - b[4]).norm()
            for a, b in zip(parts(model), parts(other), strict=True)
        ]  # fmt: skip
        a, b = model.frame, other.frame
        enter = norm(
            torch.cat([a.embedding.weight - b.embedding.weight, (a.embedding.bias - b.embedding.bias)[:, None]], 1), 2
        )
        enter = enter + (a.position - b.position).norm(dim=1).max()
        leave = norm(folded(a.read_out, a.final_norm) - folded(b.read_out, b.final_norm), 2)
    return max(x.item() for x in (*layers, enter, leave))


def test_the_paper_s_form_is_never_below():
    g = np.random.default_rng(0)
    for _ in range(2000):
        sizes = [int(10 ** g.uniform(0, 3)) for _ in range(4)]
        of = theory.TheoryClass(*sizes, norm=10 ** g.uniform(-3, 6), radius=10 ** g.uniform(0, 6))
        rho = 10 ** g.uniform(-20, 0)
        assert 0 < of.log_cover(rho) <= theory.paper_log_cover(of, rho)


def test_sizes_of_hand():
    of = theory.TheoryClass(layers=1, heads=2, embed_dim=3, mlp_dim=5, norm=2.0, radius=1.0)
    assert of.numbers == 3 * 2 * 9 + 2 * 15
    # B_Theta = max{2 * 4, 2 (1 + 32/27)}
    assert math.exp(of.log_lipschitz) == pytest.approx(16)
    assert of.log_cover(0.5) == pytest.approx(84 * math.log(1 + 2 * 2 * 16 / 0.5))
    two = theory.TheoryClass(layers=2, heads=2, embed_dim=3, mlp_dim=5, norm=2.0, radius=1.0)
    assert math.exp(two.log_lipschitz) == pytest.approx(16 * (1 + 2 * (1 + 32 / 9)))
    # r = 2, k = 2: B_H = 3 (1 + 256/9), B_Theta = 3 * 4 * 8, Lip = 2 (4 (3 B_H + B_Theta) + 2)
    practical = theory.PracticalClass(1, 1, 3, 5, 2.0, fields=3.0, n_tokens=4, width=7, n_actions=2, epsilon=0.25)
    assert math.exp(practical.log_lipschitz) == pytest.approx(2892)
    # two layers: 3 B_H^2 + (1 + B_H) B_Theta
    second = dataclasses.replace(practical, layers=2)
    assert math.exp(second.log_lipschitz) == pytest.approx(2 * (4 * (3 * (265 / 3) ** 2 + (268 / 3) * 96) + 2))
    # small weights: B_Theta = B r + 1 and 1 meet in max{1, ...}
    small = dataclasses.replace(practical, norm=0.1, fields=0.5)
    layer = (1 + 0.01 / 2) * (1 + 4 / 9 * 0.001 * 8)
    assert math.exp(small.log_lipschitz) == pytest.approx(2 * (0.2 * (layer + 1.2) + 2))
    practical = theory.class_of(transformer(), *history(2))
    # V of a head counts as D x (D + 1), of rank Dh it is less
    assert practical.numbers >= transformer().num_parameters()["total"] - 4 * 16 * 16
    with pytest.raises(ValueError, match="rho = 0"):
        of.log_cover(0.0)
    with pytest.raises(ValueError, match=r"model\.attention = softmax"):
        theory.class_of(transformer(attention="softmax"), *history(2))


def test_the_radius_is_the_largest_token_or_the_clip():
    model = transformer(preset="theory")
    data = history(3)
    longest = max(h.norm(dim=-1).max().item() for h in model.states(*data))
    assert theory.class_of(model, *data).radius == pytest.approx(longest)
    assert longest >= 64  # position 8 squared
    assert theory.class_of(transformer(preset="theory", clip_norm=2.5), *data).radius == 2.5


def test_theorem_6_factor_by_factor():
    found = theory.guarantee(
        lambda rho: 10 - math.log(rho), horizon=10, trajectories=1000, delta=0.1, log_ratio=math.log(4), eps_real=0.02
    )
    log_cover = 10 + 2 * math.log(10_000)
    statistical = math.sqrt(6 * (log_cover + math.log(200)) / 1000 + 4e-8)
    assert (found.log_cover, found.statistical) == (pytest.approx(log_cover), pytest.approx(statistical))
    assert (found.root_ratio, found.approximation) == (pytest.approx(2), pytest.approx(0.2))
    assert found.hellinger == pytest.approx(10 * 2 * (statistical + 0.2))
    assert found.reward == pytest.approx(20 * found.hellinger)
    assert found.says_something == (True, False)
    lines = found.table().splitlines()
    assert len(lines) == 8
    assert "vacuous" in lines[-1]
    assert "below" in lines[-2]


def test_part_ii_scales_with_the_rewards_and_is_left_out_where_they_have_no_bound():
    plain, scaled, without = (
        theory.guarantee(lambda rho: 10.0, horizon=10, trajectories=1000, reward_bound=b) for b in (1.0, 3.0, None)
    )
    assert (scaled.hellinger, scaled.reward) == (plain.hellinger, pytest.approx(3 * plain.reward))
    assert (scaled.reward_at_most, without.reward_at_most) == (60, math.inf)
    assert without.says_something == (plain.says_something[0], False)
    assert "2 b T holds anyway, b = 3" in scaled.table()
    assert "needs bounded mean rewards" in without.table().splitlines()[-1]


@pytest.mark.parametrize(
    ("environment", "bound"),
    [
        (LinearBanditConfig(dim=3), 3.0),
        (LinearBanditConfig(dim=4, prior="sphere"), 2.0),
        (LinearBanditConfig(dim=4, prior="gaussian"), None),
        (LinearBanditConfig(dim=4, prior="gaussian", noise="bernoulli"), 1.0),
        (GaussianBanditConfig(), None),
        (BernoulliBanditConfig(), 1.0),
        (TabularMDPConfig(), 1.0),
    ],
)
def test_bounds_of_mean_rewards(environment, bound):
    assert theory.reward_bound(environment) == bound


def test_prop_7_adds_the_label_to_what_the_class_lacks():
    given = {"horizon": 10, "trajectories": 1000, "eps_real": 0.02}
    theorem, prop = (theory.guarantee(lambda rho: 10.0, **given, eps_approx=eps) for eps in (None, 0.09))
    assert prop.approximation == pytest.approx(theorem.approximation + 0.3)
    assert prop.reward == pytest.approx(theorem.reward + 2 * 10 * 10 * 0.3)
    assert "posterior sampling against context" in prop.table()
    assert "sqrt(eps_approx)" in prop.table()
    assert "eps_approx" not in theorem.table()


@pytest.mark.parametrize("part", [1, 2])
def test_the_fewest_trajectories_are_where_the_bound_begins_to_say_something(part):
    of = theory.TheoryClass(2, 2, 16, 5, norm=5.0, radius=10.0)
    n = theory.fewest_trajectories(of.log_cover, part=part, horizon=20, log_ratio=1.0)
    for share, says in ((1.0, True), (0.985, False)):
        found = theory.guarantee(of.log_cover, horizon=20, trajectories=int(n * share), log_ratio=1.0)
        assert found.says_something[part - 1] is says
    assert theory.fewest_trajectories(of.log_cover, part=part, horizon=20, eps_real=1.0) is None


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("horizon", 0),
        ("trajectories", 0),
        ("trajectories", 1e160),
        ("delta", 0.0),
        ("log_ratio", -1.0),
        ("eps_real", -0.1),
        ("eps_approx", -0.1),
        ("reward_bound", 0.0),
    ],
)
def test_numbers_out_of_range_are_named(option, value):
    with pytest.raises(ValueError, match=re.escape(f"{option} = {value}")):
        theory.guarantee(lambda rho: 1.0, **{"horizon": 3, "trajectories": 5, option: value})
