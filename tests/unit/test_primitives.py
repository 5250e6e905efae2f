"""Each primitive alone against its formula, and the factored layer against the plain one."""

import numpy as np
import pytest
import torch

from icrl import checkpoint
from icrl.attention import KVCache
from icrl.config import LinearBanditConfig
from icrl.constructions import primitives
from icrl.constructions.assemble import assemble
from icrl.constructions.form import Form
from icrl.constructions.layer import Layer
from icrl.constructions.stream import Stream

N = 400
STREAM = Stream({"x": 3, "y": 3, "z": 2}, 1, {"out": 2, "sum": 1})
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6}
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])


def tokens(dtype, n=N, batch=2):
    generator = torch.Generator().manual_seed(n)
    h = torch.zeros(batch, n, STREAM.width, dtype=torch.float64)
    h[..., :8] = 2 * torch.rand(batch, n, 8, dtype=torch.float64, generator=generator) - 1
    index = torch.arange(1, n + 1, dtype=torch.float64)
    h[..., -3:] = torch.stack([index, index**2, torch.ones_like(index)], -1)
    return h.to(dtype)


def written(layer, h, name="out"):
    """What the layer adds to a block, float64."""
    change = layer.build(0).to(h.dtype)(h, None) - h
    assert torch.count_nonzero(change[..., : STREAM.blocks["out"].start]) == 0
    return STREAM.read(change, name).double()


def blocks(h):
    return (STREAM.read(h, name).double() for name in ("x", "y", "z"))


def assert_relative(got, expected, dtype):
    torch.testing.assert_close(got, expected, rtol=0, atol=TOLERANCE[dtype] * expected.abs().max().item())


@DTYPES
def test_gates(dtype):
    h = tokens(dtype)
    _, _, z = blocks(h)
    index = h[..., -3:-2].double()
    for primitive, factor in ((primitives.add_share, 1 / index), (primitives.add, 1.0)):
        layer = Layer(STREAM)
        primitive(layer, STREAM["z"], STREAM["out"])
        assert_relative(written(layer, h), factor * z, dtype)
    layer = Layer(STREAM)
    primitives.multiply_by_index(layer, STREAM["z"], STREAM["out"], N)
    assert_relative(written(layer, h), index * z, dtype)


@pytest.mark.parametrize(("dtype", "gate"), [(torch.float64, 4.0), (torch.float64, 8192.0), (torch.float32, 4.0)])
def test_products(dtype, gate):
    h = tokens(dtype)
    x, y, z = blocks(h)
    layer = Layer(STREAM)
    primitives.add_product(layer, STREAM["x"], STREAM["y"], STREAM["sum"], bound=3, gate=gate)
    primitives.add_scaled_product(layer, STREAM["x"], STREAM["x"], STREAM["z"], STREAM["out"], bound=3, positive=True)
    rounding = torch.finfo(dtype).eps * gate * N  # of B (j - i), where a kernel does not add in order
    torch.testing.assert_close(written(layer, h, "sum")[..., 0], (x * y).sum(-1), rtol=0, atol=rounding)
    square = (x * x).sum(-1, keepdim=True)
    assert_relative(written(layer, h), square * z / h[..., -3:-2].double(), dtype)


@DTYPES
def test_sums(dtype):
    h = tokens(dtype)
    x, y, z = blocks(h)
    layer = Layer(STREAM)
    primitives.add_sum(layer, STREAM["x"][0], STREAM["z"], STREAM["out"])
    assert_relative(written(layer, h), (x[..., :1] * z).cumsum(1), dtype)
    layer = Layer(STREAM)
    primitives.add_mean(layer, STREAM["x"], STREAM["y"], STREAM["z"], 0.5 * STREAM["out"])
    scores = torch.einsum("bid,bjd->bij", x, y).tril()
    assert_relative(written(layer, h), 0.5 * scores @ z / h[..., -3:-2].double(), dtype)


@DTYPES
def test_updates_and_functions_of_the_mlp(dtype):
    h = tokens(dtype)
    x, _, z = blocks(h)
    layer = Layer(STREAM)
    primitives.update(layer, 2 * STREAM["z"] - STREAM["x"][:2], STREAM["out"])
    knots, values = [-0.75, -0.5, 0.25, 0.5], [0.5, -1.0, 2.0, 1.5]
    primitives.piecewise_linear(layer, STREAM["x"][0], knots, values, STREAM["sum"])
    assert_relative(written(layer, h), 2 * z - x[..., :2], dtype)
    expected = torch.from_numpy(np.interp(x[..., :1].numpy(), knots, values))
    assert_relative(written(layer, h, "sum"), expected, dtype)


def test_a_gate_constant_below_its_bound_is_refused_because_it_leaks():
    layer = Layer(STREAM)
    with pytest.raises(ValueError, match=r"gate constant 2\.9.*at least 3"):
        primitives.add_product(layer, STREAM["x"], STREAM["y"], STREAM["sum"], bound=3, gate=2.9)
    with pytest.raises(ValueError, match="multiply by i up to i = 400"):
        primitives.multiply_by_index(layer, STREAM["z"], STREAM["out"], N, constant=N / 2)
    with pytest.raises(ValueError, match="increasing"):
        primitives.piecewise_linear(layer, STREAM["x"][0], [0, 0], [1, 2], STREAM["sum"])
    h = tokens(torch.float64)
    x, y, _ = blocks(h)
    primitives.add_product(layer, STREAM["x"], STREAM["y"], STREAM["sum"], bound=0.1, gate=0.1)
    assert (written(layer, h, "sum")[..., 0] - (x * y).sum(-1)).abs().max() > 0.1


def mixed_layer():
    """Heads of several shapes, some on common keys, and neurons."""
    layer = Layer(STREAM)
    primitives.add_product(layer, STREAM["x"], STREAM["y"], STREAM["sum"], bound=3)
    primitives.add_mean(layer, STREAM["x"], STREAM["y"], STREAM["z"], STREAM["out"])
    primitives.add_mean(layer, STREAM["y"], STREAM["x"], STREAM["z"], STREAM["out"], positive=True)
    primitives.add(layer, STREAM["z"], Form.cat(STREAM["out"][0] + STREAM["sum"], STREAM["out"][1]))
    primitives.add_share(layer, STREAM["x"], Form.cat(STREAM["out"], STREAM["sum"]))
    primitives.update(layer, STREAM["z"] - 0.25 * STREAM["out"], STREAM["out"])
    return layer


@DTYPES
def test_the_dense_layer_is_the_same_function(dtype):
    h = tokens(dtype, n=30)
    for layer in (mixed_layer(), Layer(STREAM)):
        block = layer.build(0).to(dtype)
        with torch.no_grad():
            torch.testing.assert_close(block.dense()(h, None), block(h, None))
        assert block.operator_norm() == pytest.approx(block.dense().operator_norm(), rel=1e-12)
    assert mixed_layer().build(0, radius=2.0)(tokens(torch.float64), None).norm(dim=-1).max() <= 2 + 1e-12


def test_keys_that_heads_share_are_cached_once():
    groups = mixed_layer().build(0).groups
    assert [(group.heads, group.keys) for group in groups] == [(2, 1), (2, 1), (2, 2), (1, 1)]


def test_token_by_token_through_a_cache():
    h = tokens(torch.float64, n=12)
    layers = [mixed_layer(), Layer(STREAM), mixed_layer()]
    blocks_, slots = [], []
    for layer in layers:
        block = layer.build(len(slots))
        slots += block.slots()
        blocks_.append(block)
    cache = KVCache(slots, 2, 12, dtype=torch.float64)
    whole, parts = h, []
    for block in blocks_:
        whole = block(whole, None)
    for start, stop in ((0, 1), (1, 3), (3, 10), (10, 12)):
        part = h[:, start:stop]
        for block in blocks_:
            part = block(part, cache)
        cache.advance(stop - start)
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="horizon is over"):
        blocks_[0](h[:, :1], cache)


@DTYPES
def test_a_construction_on_disk_and_back(tmp_path, dtype):
    environment = LinearBanditConfig(dim=2, n_actions=3, horizon=5)
    stream = Stream({"action": 2, "reward": 1, "action_set": 6}, 3, {"sum": 2})
    layer = Layer(stream)
    primitives.add_sum(layer, stream["reward"], stream["action"], stream["sum"])
    last = Layer(stream)
    primitives.update(last, stream["sum"], stream["logits"][:2])
    model = assemble(environment, [layer, layer, last], dtype)
    assert (model.config.layers, model.config.heads, model.config.mlp_dim) == (3, 2, 4)
    checkpoint.save(model, tmp_path)
    loaded = checkpoint.load(tmp_path)
    data = torch.rand(2, 3, 2), torch.tensor([[0, 1, 2, 1, 0]] * 2), torch.rand(2, 5)
    assert torch.equal(loaded(*data), model(*data))
    assert (loaded.dtype, loaded.operator_norm()) == (dtype, model.operator_norm())
    features = data[0].gather(1, data[1][..., None].expand(-1, -1, 2))
    sums = 2 * (features * data[2][..., None]).cumsum(1)
    torch.testing.assert_close(model(*data)[:, 1:, :2], sums[:, :-1].to(dtype))
