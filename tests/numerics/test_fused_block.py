"""The fused block against the composition of its parts in float64, its exact properties, and where it is refused."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

import icrl.model.practical
from icrl import native
from icrl.config import LinearBanditConfig, ModelConfig
from icrl.loss import log_loss
from icrl.model import PracticalBlock, Transformer
from icrl.model.fused import block as fused

SCRIPT = Path(__file__).parent / "ranks" / "fused_block.py"
TOLERANCE = 2e-6
"""Of the norm of an error, relative to the norm of what is exact."""
SHAPES = [  # batch, tokens, embed_dim, heads, mlp_dim
    (1, 1, 8, 1, 8),
    (2, 67, 8, 1, 16),
    (3, 77, 32, 4, 32),
    (1, 400, 32, 1, 32),
    (5, 131, 64, 4, 128),
    (2, 64, 40, 5, 24),
    (4, 33, 48, 2, 72),
    (1, 9, 256, 1, 1024),
]


@pytest.fixture(autouse=True)
def can_be_compiled() -> None:
    if reason := native.refusal(fused.SOURCE, fused.INCLUDE):
        pytest.skip(f"needs native code: {reason}")


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Memory that the kernel must fill holds NaN before."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.zeros(1).new_empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)


def block_of(width: int = 32, heads: int = 2, inner: int = 32, *, attention: str = "relu") -> PracticalBlock:
    """With gains and biases that are not those of the start."""
    config = ModelConfig(embed_dim=width, heads=heads, mlp_dim=inner, attention=attention)  # type: ignore[arg-type]
    block, generator = PracticalBlock(config, 0), torch.Generator().manual_seed(0)
    block.reset(generator)
    with torch.no_grad():
        for name, parameter in block.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
            if "norm.weight" in name:
                parameter.clamp_(min=0.5)
    return block


def stream(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def refusal(block: PracticalBlock, h: Tensor) -> str | None:
    parts = (block.attention_norm, block.qkv, block.output, block.mlp_norm, block.mlp_in, block.mlp_out)
    return fused.refusal(h, parts, block.heads)


def results(block: PracticalBlock, h: Tensor, incoming: Tensor) -> list[Tensor]:
    """The block's output, and the gradients of h and of every parameter."""
    h = h.clone().requires_grad_()
    out = block(h, None)
    return [out.detach(), *torch.autograd.grad(out, [h, *block.parameters()], incoming)]


@pytest.mark.parametrize("isa", ["", "avx2", "sse2"])
@pytest.mark.parametrize("shape", SHAPES)
def test_is_the_composition(shape: tuple[int, ...], isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if isa and isa not in native.machine_isas():
        pytest.skip(f"needs a processor with {isa}")
    monkeypatch.setenv("ICRL_NATIVE_ISA", isa)
    batch, n_tokens, width, heads, inner = shape
    block = block_of(width, heads, inner)
    h, incoming = stream(batch, n_tokens, width), stream(batch, n_tokens, width, seed=2)
    assert refusal(block, h) is None
    got = results(block, h, incoming)
    exact = results(block.double(), h.double(), incoming.double())
    for name, a, b in zip(["out", "h", *dict(block.named_parameters())], got, exact, strict=True):
        assert (a.double() - b).norm() <= TOLERANCE * b.norm(), name


def test_threads_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_SMALL", 0)
    block, h, incoming = block_of(), stream(19, 50, 32), stream(19, 50, 32, seed=2)
    before = torch.get_num_threads()
    try:
        runs = []
        for threads in (1, 2, 5, 64):
            torch.set_num_threads(threads)
            runs.append(results(block, h, incoming))
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


def test_a_sequence_does_not_depend_on_its_batch() -> None:
    block, h = block_of(), stream(5, 70, 32)
    together = block(h, None)
    assert all(torch.equal(block(h[i : i + 1], None), together[i : i + 1]) for i in range(5))


@pytest.mark.parametrize("value", [7.0, torch.inf, torch.nan])
def test_a_token_changes_later_rows_only(value: float) -> None:
    block, h = block_of(), stream(2, 131, 32)
    before = block(h, None)
    for j in (0, 5, 64, 130):
        changed = h.clone()
        changed[:, j, 3] = value
        after = block(changed, None)
        assert torch.equal(before[:, :j], after[:, :j])
        if value == 7.0:
            assert not torch.equal(before[:, j], after[:, j])
        else:
            assert after[:, j:].isnan().any(-1).all(), "what is not finite must not be lost"


def test_any_layout_of_the_stream() -> None:
    block, h = block_of(), stream(3, 20, 32)
    incoming = stream(3, 20, 32, seed=2)
    folded = h.transpose(0, 1).contiguous().transpose(0, 1)
    assert not folded.is_contiguous()
    turned = results(block, folded, incoming.transpose(0, 1).contiguous().transpose(0, 1))
    assert all(torch.equal(a, b) for a, b in zip(turned, results(block, h, incoming), strict=True))


def test_activation_checkpointing_changes_no_bit() -> None:
    block, h, incoming = block_of(), stream(3, 40, 32).requires_grad_(), stream(3, 40, 32, seed=2)
    kept = results(block, h.detach(), incoming)
    for reentrant in (False, True):
        out = checkpoint(block, h, None, use_reentrant=reentrant)
        block.zero_grad()
        h.grad = None
        out.backward(incoming)
        again = [out.detach(), h.grad, *(p.grad for p in block.parameters())]
        assert all(torch.equal(a, b) for a, b in zip(again, kept, strict=True))


def test_autocast_gets_float32() -> None:
    block, h, incoming = block_of(), stream(3, 40, 32), stream(3, 40, 32, seed=2)
    with torch.autocast("cpu", torch.bfloat16):
        lowered = results(block, h, incoming)
    assert all(torch.equal(a, b) for a, b in zip(lowered, results(block, h, incoming), strict=True))


def test_training_is_that_of_the_composition(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = LinearBanditConfig(dim=3, n_actions=4, horizon=20)
    generator = torch.Generator().manual_seed(0)
    action_set = torch.rand(8, 4, 3, generator=generator)
    action, label = torch.randint(0, 4, (2, 8, 20), generator=generator)
    data = action_set, action, torch.randn(8, 20, generator=generator)
    losses: dict[str, list[float]] = {}
    for switch in ("1", "0"):
        monkeypatch.setenv("ICRL_NATIVE", switch)
        shape = ModelConfig(layers=3, heads=2, embed_dim=16, mlp_dim=16)
        model = Transformer(shape, environment, seed=1)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        losses[switch] = []
        for _ in range(8):
            loss = log_loss(model(*data), label).mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses[switch].append(float(loss.detach()))
    assert losses["1"] == pytest.approx(losses["0"], abs=1e-5)
    assert losses["1"][-1] < losses["1"][0] - 0.05


def test_the_default_dtype_does_not_matter() -> None:
    block, h, incoming = block_of(), stream(3, 40, 32), stream(3, 40, 32, seed=2)
    expected = results(block, h, incoming)
    torch.set_default_dtype(torch.float64)
    try:
        found = results(block, h, incoming)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def hooked() -> PracticalBlock:
    block = block_of()
    block.qkv.register_forward_hook(lambda module, inputs, output: None)
    return block


def partitioned() -> PracticalBlock:
    block = block_of()
    block.mlp_in.weight.ds_id = 3  # type: ignore[assignment]
    return block


@pytest.mark.parametrize(
    ("make", "h", "reason"),
    [
        (lambda: block_of().double(), stream(1, 4, 32).double(), "it computes in float32, got torch.float64"),
        (lambda: block_of(40, 2), stream(1, 4, 40), "multiples of 8.*embed_dim 40, 20 a head"),
        (lambda: block_of(32, 2, 12), stream(1, 4, 32), "multiples of 8.*mlp_dim 12"),
        (lambda: block_of(512, 4), stream(1, 2, 512), "embed_dim up to 256.*embed_dim 512"),
        (hooked, stream(1, 4, 32), "a hook waits"),
        (partitioned, stream(1, 4, 32), "ZeRO-3"),
    ],
    ids=["float64", "head", "mlp", "wide", "hook", "zero3"],
)
def test_a_refusal_says_why_and_the_composition_answers(
    make, h: Tensor, reason: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    fused._log_once.cache_clear()
    block = make()
    with caplog.at_level(logging.INFO, "icrl.model.fused"):
        out = block(h, None)
        block(h, None)
    assert len(caplog.records) == 1, "said once"
    assert re.search(reason, caplog.text)
    monkeypatch.setattr(icrl.model.practical, "refusal", lambda *_: "the test asks for the composition")
    assert torch.equal(out, block(h, None))


def test_parameters_on_another_device_are_refused() -> None:
    block = block_of()
    block.mlp_out.to("meta")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused.ops, "is_traced", lambda *_: False)
        assert "got a tensor on meta" in (refusal(block, stream(1, 4, 32)) or "")


def test_traces_and_transforms_see_the_composition() -> None:
    block, h = block_of(), stream(3, 9, 32)
    expected = block(h, None)
    other = stream(3, 9, 32, seed=5)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            recorded = make_fx(lambda x: block(x, None))(h)
            torch.testing.assert_close(recorded(other), block(other, None))
    torch.testing.assert_close(torch.func.vmap(lambda x: block(x[None], None)[0])(h), expected)
    weights = dict(block.named_parameters())
    gradients = torch.func.grad(lambda p: torch.func.functional_call(block, p, (h, None)).square().sum())(weights)
    expected.square().sum().backward()
    for name, parameter in block.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-4)
    with FakeTensorMode():
        assert block_of()(torch.empty(2, 9, 32), None).shape == (2, 9, 32)


def test_every_call_that_a_hook_or_a_subclass_waits_for_is_made() -> None:
    calls: list[str] = []
    for name, kind in (("attention_norm", nn.LayerNorm), ("qkv", nn.Linear)):

        class Watched(kind):  # type: ignore[misc, valid-type]
            def forward(self, x: Tensor) -> Tensor:
                calls.append("subclass")
                return super().forward(x)  # type: ignore[no-any-return]

        block = block_of()
        part = getattr(block, name)
        part.__class__ = Watched
        block(stream(1, 4, 32), None)
    for register in ("forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"):
        block = block_of()
        getattr(block.mlp_in, f"register_{register}")(lambda *_, said=register: calls.append(said))
        block(stream(1, 4, 32), None).sum().backward()
    handle = nn.modules.module.register_module_forward_hook(lambda *_: calls.append("global"))
    try:
        block_of()(stream(1, 4, 32), None)
    finally:
        handle.remove()
    hooks = ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"]
    assert calls == ["subclass", "subclass", *hooks, *["global"] * 7]


def test_native_code_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ICRL_NATIVE", "0")
    assert "ICRL_NATIVE = 0" in (refusal(block_of(), stream(1, 4, 32)) or "")


def test_softmax_and_a_cache_are_the_compositions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(icrl.model.practical, "fused_block", lambda *_: pytest.fail("it has ReLU attention only"))
    block_of(attention="softmax")(stream(1, 4, 32), None)
    model = Transformer(ModelConfig(tokens="merged"), LinearBanditConfig(), seed=0)
    with torch.inference_mode():
        model.forward_cached(torch.rand(1, 10, 5), None, model.new_cache(1))


@pytest.mark.parametrize("attention", ["relu", "softmax"])
def test_a_compiled_model_is_one_graph_of_the_composition(attention: str) -> None:
    shape = ModelConfig(layers=2, heads=2, embed_dim=16, mlp_dim=16, attention=attention)  # type: ignore[arg-type]
    model = Transformer(shape, LinearBanditConfig(dim=3, n_actions=3, horizon=5), seed=1)
    data = stream(2, 3, 3), torch.arange(10).view(2, 5) % 3, stream(2, 5, seed=2)
    fused._log_once.cache_clear()
    torch._dynamo.reset()
    logging.getLogger(fused.__name__).setLevel(logging.INFO)
    try:
        out = torch.compile(model, backend="eager", fullgraph=True)(*data)
    finally:
        logging.getLogger(fused.__name__).setLevel(logging.NOTSET)
    torch.testing.assert_close(out, model(*data), rtol=1e-5, atol=1e-6)


def ranks_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fused_block_ranks", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def plain(ranks: ModuleType) -> list[list[float]]:
    """The same training in plain PyTorch: (loss, norm of the gradient) of every step."""
    from train.engine import parameter_groups

    model, train = ranks.model(), ranks.config(0)
    groups = parameter_groups(model, train.optimizer.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=ranks.LR, betas=(train.optimizer.beta1, train.optimizer.beta2))
    seen = []
    for step in range(ranks.STEPS):
        loss = model(*ranks.batch(step))
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), train.clip)
        optimizer.step()
        seen.append([float(loss.detach()), float(norm)])
    return seen


@pytest.mark.slow
def test_two_ranks_train_as_plain_pytorch_at_every_zero_stage(tmp_path: Path) -> None:
    ranks, out = ranks_module(), tmp_path / "seen.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"]
    command += ["--rdzv-endpoint=127.0.0.1:0", str(SCRIPT), str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    expected = torch.tensor(plain(ranks))
    for stage, record in json.loads(out.read_text()).items():
        torch.testing.assert_close(torch.tensor(record["steps"]), expected, rtol=1e-5, atol=1e-5)
        assert record["fused"] == (0 if stage == "3" else ranks.LAYERS * ranks.STEPS)


def test_nothing_to_read_is_refused() -> None:
    assert refusal(block_of(), stream(0, 4, 32)) == "there are no tokens"
    with pytest.raises(ValueError, match="each at least 1"):
        block_of()(stream(0, 4, 32), None)
