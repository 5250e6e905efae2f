"""Weights of a checkpoint as a portable model."""

from __future__ import annotations

from icrl.model import Transformer
from icrl.pretrained import save_pretrained
from icrl.run_dir import RunDirectory
from train import checkpoints

_WEIGHT = "weight/transformer."
"""How the engine's state names the transformer's weights."""


def export(run: RunDirectory, place: str, step: int | None = None) -> int:
    """Write the weights of a checkpoint, by default the newest whole one, to a directory or s3://; returns its step.

    Raises:
        ValueError: no such checkpoint, a damaged one, one of another model, or a place that holds a model already.
        OSError: the disk or the object store refuses.
    """
    config = run.config()
    checkpoints.require_model(run.checkpoints, config)
    checkpoint = checkpoints.at(run.checkpoints, step)
    model = Transformer(config.model, config.environment)
    state = checkpoint.tensors()
    model.load_state_dict({key.removeprefix(_WEIGHT): state[key] for key in state if key.startswith(_WEIGHT)})
    save_pretrained(model, place)
    return checkpoint.step
