"""A transformer on disk: `model.safetensors` (weights, their config inside) and `model.json` (the config, to read).

The weights alone decide what is loaded, and are written last: where they are, everything is.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from icrl.config import Config, ConfigError, EnvironmentConfig, ModelConfig, build_one_of
from icrl.config.build import build, to_dict
from icrl.files import atomic_write, canonical_json, make_directory, write_json
from icrl.model import FactoredBlock, Transformer

WEIGHTS = "model.safetensors"
CONFIG = "model.json"
FORMAT = 1


def save(model: Transformer, directory: Path) -> None:
    """Write the weights (in their dtype) and the config, each atomically and durably."""
    make_directory(directory)
    config = {
        "format": FORMAT,
        "model": to_dict(model.config),
        "environment": to_dict(model.environment),
    }
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    metadata = {"icrl": canonical_json(config).decode()}
    write_json(directory / CONFIG, config)
    atomic_write(directory / WEIGHTS, safetensors.torch.save(weights, metadata))


def load(directory: Path) -> Transformer:
    """The transformer that `save` wrote, on the CPU, in the dtype of its weights.

    ValueError when there is none, or when the file holds something else: another format, other names or other shapes.
    """
    path = directory / WEIGHTS
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected a directory written by icrl.checkpoint.save")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights: dict[str, torch.Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error})") from error
    if "icrl" not in metadata:
        raise ValueError(f"{path}: weights without an icrl config; expected a file written by icrl.checkpoint.save")
    model = _build(json.loads(metadata["icrl"]), weights, path)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if expected != found:
        differing = sorted(name for name in expected | found if expected.get(name) != found.get(name))
        name = differing[0]
        raise ValueError(
            f"{path}: {len(differing)} tensors differ from the model of its config, first {name}: "
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


def _build(config: dict[str, Any], weights: dict[str, torch.Tensor], path: Path) -> Transformer:
    if config["format"] != FORMAT:
        raise ValueError(
            f"{path}: format {config['format']}, expected {FORMAT}; it was written by another version of icrl"
        )
    try:
        settings = build(ModelConfig, config["model"], "model")
        environment = build_one_of(EnvironmentConfig, config["environment"], "environment")
        return Transformer(settings, environment, blocks=_factored_blocks(settings, weights))
    except ConfigError as error:
        raise ValueError(f"{path}: its config does not fit this version of icrl: {error}") from error


def _factored_blocks(settings: ModelConfig, weights: dict[str, torch.Tensor]) -> list[FactoredBlock] | None:
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
