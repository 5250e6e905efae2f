"""A transformer on disk: `model.safetensors` (weights, config and sum inside) and `model.json` (the config, to read).

The weights alone decide what is loaded, and are written last: where they are, everything is. Neither file holds code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from icrl.config import Config, ConfigError, EnvironmentConfig, ModelConfig, build_one_of
from icrl.config.build import build, to_dict
from icrl.files import atomic_write, canonical_json, json_bytes, make_directory
from icrl.model import FactoredBlock, Transformer

WEIGHTS = "model.safetensors"
CONFIG = "model.json"
FORMAT = 2
_WITHOUT_SUM = 1
"""The format before, whose weights had no sum; still read."""
_SUM = "sha256"


def save(model: Transformer, directory: Path) -> None:
    """Write the weights (in their dtype) and the config, each atomically and durably."""
    make_directory(directory)
    for name, data in encode(model).items():
        atomic_write(directory / name, data)


def load(directory: Path) -> Transformer:
    """The transformer that `save` wrote, on the CPU, in the dtype of its weights.

    Raises:
        ValueError: there is none, its sum does not hold, or the file holds something else: another format, other names
            or other shapes.
    """
    path = directory / WEIGHTS
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected a directory written by icrl.checkpoint.save")
    return decode(path.read_bytes(), path)


def encode(model: Transformer) -> dict[str, bytes]:
    """The files of a model by name, in the order to write them."""
    config = {
        "format": FORMAT,
        "model": to_dict(model.config),
        "environment": to_dict(model.environment),
    }
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    # one entry: safetensors writes several in any order, and the same model is the same bytes
    metadata = {"icrl": canonical_json({**config, _SUM: _sum(config, weights)}).decode()}
    return {CONFIG: json_bytes(config), WEIGHTS: safetensors.torch.save(weights, metadata)}


def decode(data: bytes, source: object) -> Transformer:
    """The transformer in the bytes of `model.safetensors`; `source` names them in errors.

    Raises:
        ValueError: as `load`.
    """
    try:
        weights = safetensors.torch.load(data)
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__") or {}
    except (safetensors.SafetensorError, ValueError) as error:
        raise ValueError(f"{source}: not a whole safetensors file ({error})") from error
    if "icrl" not in metadata:
        raise ValueError(f"{source}: weights without an icrl config; expected a file written by icrl.checkpoint.save")
    try:
        config = json.loads(metadata["icrl"])
        written = config["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{source}: damaged: its config cannot be read ({error})") from error
    if written not in (FORMAT, _WITHOUT_SUM):
        raise ValueError(f"{source}: format {written}, expected {FORMAT}; it was written by another version of icrl")
    if written != _WITHOUT_SUM or _SUM in config:
        _require_sum(config, weights, source)
    model = _build(config, weights, source)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if expected != found:
        differing = sorted(name for name in expected | found if expected.get(name) != found.get(name))
        name = differing[0]
        raise ValueError(
            f"{source}: {len(differing)} tensors differ from the model of its config, first {name}: "
            f"got {found.get(name, 'nothing')}, expected {expected.get(name, 'nothing')}"
        )
    model.to(next(tensor.dtype for tensor in weights.values() if tensor.is_floating_point()))
    model.load_state_dict(weights)
    return model


def starting_point(config: Config) -> Path | None:
    """The directory of `train.init_from`, relative ones under the storage root; None: random weights."""
    if config.train.init_from is None:
        return None
    return Path(config.storage.root).expanduser() / Path(config.train.init_from).expanduser()


def start_from(model: Transformer, directory: Path, *, check_only: bool = False) -> None:
    """Give the model the weights of a directory that `save` wrote, in the model's dtype; check_only: read shapes alone.

    ValueError when there are none, when they are a construction's in factors, or when a shape differs: it names the
    first such tensor with both shapes, and what makes them agree.
    """
    path = directory / WEIGHTS
    if not path.is_file():
        raise ValueError(f"train.init_from = {directory}: expected a directory with {WEIGHTS}, a run's or a saved one")
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            if "blocks.0.shapes" in found:
                raise ValueError(
                    f"train.init_from = {directory}: a construction in factors, expected dense weights; save what "
                    "icrl.constructions.embed makes of it"
                )
            if expected != found:
                name = min(name for name in expected | found if expected.get(name) != found.get(name))
                raise ValueError(
                    f"train.init_from = {directory}: {name} is {found.get(name, 'missing')} there and "
                    f"{expected.get(name, 'missing')} in the model; give the section model the sizes of "
                    f"{directory / CONFIG}"
                )
            if not check_only:
                model.load_state_dict({name: file.get_tensor(name) for name in found})
    except safetensors.SafetensorError as error:
        raise ValueError(f"train.init_from = {path}: not a whole safetensors file ({error})") from error


def _sum(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> str:
    """The sha256 of the config and of every tensor's name, dtype, shape and bytes."""
    digest = hashlib.sha256(canonical_json({key: value for key, value in config.items() if key != _SUM}))
    for name, tensor in sorted(weights.items()):
        digest.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _require_sum(config: Mapping[str, Any], weights: Mapping[str, Tensor], source: object) -> None:
    if config.get(_SUM) != _sum(config, weights):
        raise ValueError(
            f"{source}: damaged: its weights do not match their sha256; take another copy, or repeat the command that "
            "trained it, which writes them again from the last checkpoint"
        )


def _build(config: dict[str, Any], weights: dict[str, Tensor], source: object) -> Transformer:
    try:
        settings = build(ModelConfig, config["model"], "model")
        environment = build_one_of(EnvironmentConfig, config["environment"], "environment")
        return Transformer(settings, environment, blocks=_factored_blocks(settings, weights))
    except ConfigError as error:
        raise ValueError(f"{source}: its config does not fit this version of icrl: {error}") from error


def _factored_blocks(settings: ModelConfig, weights: dict[str, Tensor]) -> list[FactoredBlock] | None:
    """The layers of a model in factors, whose shapes its weights tell; None when they are not in factors."""
    if "blocks.0.shapes" not in weights:
        return None
    blocks: list[FactoredBlock] = []
    slot = 0
    for layer in range(settings.layers):
        block = FactoredBlock.of_state(
            weights, f"blocks.{layer}", settings.embed_dim, slot=slot, radius=settings.clip_norm
        )
        blocks.append(block)
        slot += len(block.groups)
    return blocks
