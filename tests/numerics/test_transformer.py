"""The transformer: Def 1-3 transcribed, causality bit for bit, cached passes, heads, gradients, and that it learns."""

import itertools

import pytest
import torch

from icrl.config import LinearBanditConfig, ModelConfig
from icrl.loss import log_loss
from icrl.model import Transformer

ENVIRONMENT = LinearBanditConfig(dim=3, n_actions=4, horizon=8)
VARIANTS = [
    pytest.param(preset, kind, tokens, id=f"{preset}-{kind}-{tokens}")
    for preset, kind, tokens in itertools.product(
        ["practical", "theory"], ["relu", "softmax"], ["paper", "onehot", "merged"]
    )
    if (preset, kind) != ("theory", "softmax")
]


def trajectories(batch=5, seed=0, horizon=8):
    generator = torch.Generator().manual_seed(seed)
    action_set = 2 * torch.rand(batch, 4, 3, generator=generator) - 1
    action = torch.randint(0, 4, (batch, horizon), generator=generator).to(torch.uint8)
    return action_set, action, torch.randn(batch, horizon, generator=generator)


def build(preset="practical", attention="relu", tokens="merged", *, heads=2, seed=1, **options):
    config = ModelConfig(
        preset=preset, layers=3, heads=heads, embed_dim=40, mlp_dim=24, attention=attention, tokens=tokens, **options
    )
    return Transformer(config, ENVIRONMENT, seed=seed)


def definition(model, action_set, action, reward, radius):
    """Def 1-3 and the token blocks of section 2.1, in float64, from nothing but the weights."""
    batch, n_rounds = action.shape
    d, A, D = 3, 4, 40
    h = torch.zeros(batch, 2 * n_rounds, D, dtype=torch.float64)
    for b in range(batch):
        for t in range(1, n_rounds + 1):
            h[b, 2 * t - 2, d + 1 : d + 1 + A * d] = action_set[b].double().reshape(-1)
            h[b, 2 * t - 1, :d] = action_set[b, int(action[b, t - 1])]
            h[b, 2 * t - 1, d] = reward[b, t - 1]
        for i in range(1, 2 * n_rounds + 1):
            h[b, i - 1, -3:] = torch.tensor([i, i * i, 1.0])

    def clip(x):
        return x * torch.minimum(torch.ones(()), radius / x.norm(dim=-1, keepdim=True))

    n_tokens = h.shape[1]
    rows = [[float(j <= i) / (i + 1) for j in range(n_tokens)] for i in range(n_tokens)]
    visible = torch.tensor(rows, dtype=torch.float64)
    h = clip(h)
    for layer in range(3):
        w = {name: p.detach().double() for name, p in model.blocks[layer].named_parameters()}
        total = h.clone()
        for m in range(w["query"].shape[0]):
            q, k, v = (torch.einsum("xy,biy->bix", w[n][m], h) for n in ("query", "key", "value"))
            score = torch.relu(torch.einsum("bix,bjx->bij", q, k))
            total += torch.einsum("ij,bij,bjx->bix", visible, score, v)
        hidden = torch.relu(torch.einsum("xy,biy->bix", w["mlp_in"], total))
        h = clip(total + torch.einsum("xy,biy->bix", w["mlp_out"], hidden))
    return h[:, ::2, d + 1 + A * d : d + 1 + A * d + A]


@pytest.mark.parametrize("radius", [None, 3.0, 40.0])
def test_theory_preset_is_definitions_1_to_3(radius):
    model = build("theory", tokens="paper", clip_norm=radius).double()
    data = trajectories()
    expected = definition(model, *data, torch.inf if radius is None else radius)
    torch.testing.assert_close(model(*data), expected, rtol=1e-11, atol=1e-11)


def test_theory_preset_reads_the_positions_it_is_given():
    model = build("theory", tokens="paper", clip_norm=40.0).double()
    with torch.no_grad():
        for block in model.blocks:
            for matrix in (block.query, block.key, block.value, block.mlp_in):
                matrix[..., -3:-1].normal_(0, 0.1, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(model(*trajectories()), definition(model, *trajectories(), 40.0), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("preset", "kind", "tokens"), VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_round_changes_later_logits_only(preset, kind, tokens, dtype):
    model = build(preset, kind, tokens).to(dtype)
    action_set, action, reward = trajectories()
    with torch.inference_mode():
        before = model(action_set, action, reward)
        for t in range(8):
            for other_action, other_reward in (((action + 1) % 4, reward), (action, reward - 5)):
                changed_action, changed_reward = action.clone(), reward.clone()
                changed_action[:, t], changed_reward[:, t] = other_action[:, t], other_reward[:, t]
                after = model(action_set, changed_action, changed_reward)
                assert torch.equal(before[:, : t + 1], after[:, : t + 1])
                assert t == 7 or not torch.equal(before[:, t + 1], after[:, t + 1])


@pytest.mark.parametrize(("preset", "kind", "tokens"), VARIANTS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("backend", ["auto", "plain"])
def test_cached_rounds_equal_the_full_pass(preset, kind, tokens, dtype, tolerance, backend):
    model = build(preset, kind, tokens).to(dtype)
    cache = model.new_cache(5, backend=backend)
    for seed in range(2):  # the second trajectories after a reset
        action_set, action, reward = trajectories(seed=seed)
        cache.reset()
        with torch.inference_mode():
            rounds = [
                model.forward_cached(action_set, (action[:, t - 1], reward[:, t - 1]) if t else None, cache)
                for t in range(8)
            ]
            full = model(action_set, action, reward)
        torch.testing.assert_close(torch.stack(rounds, 1), full, rtol=0, atol=tolerance)
    with pytest.raises(ValueError, match="horizon is over"):
        model.forward_cached(action_set, (action[:, -1], reward[:, -1]), cache)
    with pytest.raises(ValueError, match="horizon is over"):
        model(*trajectories(horizon=9))


@pytest.mark.parametrize(("preset", "kind", "tokens"), VARIANTS)
@pytest.mark.parametrize("backend", ["auto", "plain"])
def test_cached_rounds_that_start_apart_equal_the_full_pass(preset, kind, tokens, backend):
    """Interaction b starts over in step 2 b; what came before it leaves no trace."""
    model = build(preset, kind, tokens).double()
    action_set, action, reward = trajectories(4)
    starts = [0, 2, 4, 6]
    cache = model.new_cache(4, backend=backend)
    got = torch.full((4, 8, 4), torch.nan, dtype=torch.float64)
    with torch.inference_mode():
        cache.reset(range(4))
        for step in range(8):
            cache.reset([b for b in range(4) if starts[b] == step])
            rounds = torch.tensor([step - start if step >= start else step for start in starts])
            last = (torch.arange(4), (rounds - 1).clamp(min=0))
            logits = model.forward_cached(action_set, (action[last], reward[last]), cache)
            for b in range(4):
                got[b, rounds[b]] = logits[b]
        full = model(action_set, action, reward)
    for b in range(4):
        n = 8 - starts[b]
        torch.testing.assert_close(got[b, :n], full[b, :n], rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match=r"previous = None: expected \(action, reward\)"):
        model.forward_cached(action_set, None, cache)


@pytest.mark.parametrize("kind", ["relu", "softmax"])
def test_a_prefix_has_the_logits_of_the_whole(kind):
    model = build(attention=kind).double()
    action_set, action, reward = trajectories()
    prefix = model(action_set, action[:, :4], reward[:, :4])
    torch.testing.assert_close(prefix, model(action_set, action, reward)[:, :4], rtol=0, atol=1e-12)


def test_heads_split_the_same_weights_into_another_function():
    one, four = build(heads=1), build(heads=4)
    four.load_state_dict(one.state_dict())
    assert not torch.allclose(one(*trajectories()), four(*trajectories()), atol=1e-4)


def test_every_parameter_gets_a_gradient():
    for tokens in ("paper", "onehot", "merged"):
        for preset in ("practical", "theory"):
            model = build(preset, tokens=tokens, clip_norm=None)
            data = trajectories()
            log_loss(model(*data), data[1]).sum().backward()
            dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
            assert dead == []


@pytest.mark.parametrize("preset", ["practical", "theory"])
def test_gradients_are_the_slopes_of_the_loss(preset):
    model = build(preset, tokens="paper", clip_norm=8.0 if preset == "theory" else None).double()
    data = trajectories()
    log_loss(model(*data), data[1]).mean().backward()
    generator = torch.Generator().manual_seed(0)
    directions = [torch.randn(p.shape, dtype=p.dtype, generator=generator) for p in model.parameters()]
    length = sum(float((u * u).sum()) for u in directions) ** 0.5
    directions = [u / length for u in directions]
    slope = sum(float((p.grad * u).sum()) for p, u in zip(model.parameters(), directions, strict=True))
    step, losses = 1e-6, []
    for sign in (1, -2):
        with torch.no_grad():
            for p, u in zip(model.parameters(), directions, strict=True):
                p.add_(u, alpha=sign * step)
            losses.append(float(log_loss(model(*data), data[1]).mean()))
    assert slope == pytest.approx((losses[0] - losses[1]) / (2 * step), rel=1e-5)


@pytest.mark.parametrize("kind", ["relu", "softmax"])
def test_it_learns_to_repeat_the_last_action(kind):
    model = build(attention=kind)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(60):
        action_set, action, reward = trajectories(32, seed=step)
        losses = log_loss(model(action_set, action, reward)[:, 1:], action[:, :-1])
        optimiser.zero_grad()
        losses.mean().backward()
        optimiser.step()
    assert losses.mean().item() < 0.1
