"""Portable weights: from a directory and from S3, and whatever bit of the file is flipped."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import icrl
from icrl import checkpoint
from icrl.config import LinearBanditConfig, ModelConfig
from icrl.model import Transformer
from icrl.pretrained import save_pretrained
from tests import s3_server

ENVIRONMENT = LinearBanditConfig(dim=2, n_actions=3, horizon=5)


def small() -> Transformer:
    return Transformer(ModelConfig(layers=1, heads=1, embed_dim=8, mlp_dim=4), ENVIRONMENT, seed=3)


def same(first: Transformer, second: Transformer) -> bool:
    one, two = first.state_dict(), second.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_a_model_comes_back_from_a_directory_and_is_never_written_over(tmp_path: Path) -> None:
    save_pretrained(small(), tmp_path / "new" / "place")
    assert same(icrl.from_pretrained(tmp_path / "new" / "place"), small())
    assert same(icrl.from_pretrained(str(tmp_path / "new" / "place")), small())
    with pytest.raises(ValueError, match="place holds a model already: choose another"):
        save_pretrained(small(), tmp_path / "new" / "place")


def test_a_model_comes_back_from_s3(monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server.serving() as port:
        for name, value in s3_server.environment(port).items():
            monkeypatch.setenv(name, value)
        place = f"s3://{s3_server.BUCKET}/models/small"
        with pytest.raises(ValueError, match=f"{place}/model.safetensors: no such file"):
            icrl.from_pretrained(place)
        save_pretrained(small(), place)
        assert same(icrl.from_pretrained(place), small())
        with pytest.raises(ValueError, match="holds a model already"):
            save_pretrained(small(), place)


def test_a_place_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"place = gs://bucket/x: expected .*s3://bucket/prefix"):
        icrl.from_pretrained("gs://bucket/x")
    with pytest.raises(ValueError, match="no such file; expected the directory of a trained run"):
        icrl.from_pretrained(tmp_path)


def test_a_flipped_bit_anywhere_is_found() -> None:
    data = checkpoint.encode(small())[checkpoint.WEIGHTS]
    header = 8 + int.from_bytes(data[:8], "little")
    rng = random.Random(5)
    bits = [(byte, rng.randrange(8)) for byte in rng.sample(range(8, header), 400)]
    bits += [(rng.randrange(header, len(data)), rng.randrange(8)) for _ in range(100)]
    bits += [(byte, bit) for byte in range(8) for bit in range(8)]
    for byte, bit in bits:
        flipped = bytearray(data)
        flipped[byte] ^= 1 << bit
        with pytest.raises(ValueError, match="the file: "):
            checkpoint.decode(bytes(flipped), "the file")


@pytest.mark.parametrize("length", [0, 7, 100, -1])
def test_a_truncated_file_is_found(length: int) -> None:
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        checkpoint.decode(checkpoint.encode(small())[checkpoint.WEIGHTS][:length], "the file")


def test_the_package_alone_imports_nothing_heavy() -> None:
    script = "import sys, icrl; print(icrl.from_pretrained.__name__, {'torch', 'zarr', 'obstore'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "from_pretrained set()\n"
