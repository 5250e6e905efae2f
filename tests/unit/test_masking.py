"""Secrets are masked by the name they stand under, by their shape, and by what the environment holds."""

from __future__ import annotations

import pytest
import yaml

from icrl.masking import MASK, mask, mask_text, masked_yaml


@pytest.mark.parametrize(
    "name",
    [
        "api_key",
        "WANDB_API_KEY",
        "AWS_SECRET_ACCESS_KEY",
        "hub_token",
        "token",
        "client_secret_id",
        "db.password",
        "key",
    ],
)
def test_values_of_secret_names_are_masked(name: str) -> None:
    assert mask({"storage": [{name: "x"}, {name: 12345}]}) == {"storage": [{name: MASK}, {name: MASK}]}


@pytest.mark.parametrize("name", ["tokens", "model.tokens", "keys", "monkey", "keep_checkpoints", "embed_dim"])
def test_innocent_names_are_not(name: str) -> None:
    assert mask({name: "merged", "none": None}) == {name: "merged", "none": None}


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("s3://bucket?token=abc123&region=eu", "abc123"),
        ("export HF_TOKEN=qwerty42; run", "qwerty42"),
        ("password: hunter2", "hunter2"),
        ("https://me:s3cr3t@host/path", "s3cr3t"),
        ("https://s3cr3t@host/path", "s3cr3t"),
        ("uses ghp_0123456789abcdefghij", "ghp_0123456789abcdefghij"),
        ("Authorization: Bearer eyJhbGciOi", "eyJhbGciOi"),
    ],
)
def test_secrets_inside_a_text(text: str, secret: str) -> None:
    masked = mask_text(text)
    assert secret not in masked
    assert MASK in masked


def test_what_a_secret_variable_holds_is_masked_wherever_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ICRL_STORE_TOKEN", "correct-horse")
    monkeypatch.setenv("ICRL_STORE_KEY", "lr")
    assert mask_text("/mnt/correct-horse/lr") == f"/mnt/{MASK}/lr"


def test_yaml_keeps_its_order_and_everything_else() -> None:
    text = "seed: 3\nmodel: {tokens: merged, layers: 2}\nauth: {api_key: abcdef}\n"
    values = yaml.safe_load(masked_yaml(text))
    assert values == {"seed": 3, "model": {"tokens": "merged", "layers": 2}, "auth": {"api_key": MASK}}
    assert list(values) == ["seed", "model", "auth"]
