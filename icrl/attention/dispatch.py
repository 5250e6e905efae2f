"""Which backend computes: the first of its device that does not refuse, or the one that was asked for.

A backend is the module `icrl.attention.<name>`, imported when first needed; what it holds: `icrl.attention.problem`.
"""

from __future__ import annotations

import importlib
import logging
import os
from functools import cache
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from icrl.attention.problem import Seen

BACKENDS = ("cpu", "gpu", "blocked", "reference")
VARIABLE = "ICRL_ATTENTION_BACKEND"
"""Environment variable that stands in for backend="auto"; a backend named in the call comes first."""

_log = logging.getLogger("icrl.attention")


class Choice(NamedTuple):
    """The backend that runs, and why those before it do not."""

    name: str
    module: ModuleType
    refusals: dict[str, str]


@cache
def _load(name: str) -> ModuleType | str:
    """The backend's module, or why there is none."""
    try:
        return importlib.import_module(f"icrl.attention.{name}")
    except ImportError as error:
        return f"cannot be imported: {error}"


def _candidates(device: str) -> tuple[str, ...]:
    match device:
        case "cuda":
            return ("gpu", "blocked", "reference")
        case "cpu":
            return ("cpu", "blocked", "reference")
        case _:
            return ("blocked", "reference")


@cache
def _log_once(name: str, refused: str, reason: str) -> None:
    _log.info("ReLU attention runs on backend %s: %s %s", name, refused, reason)


def require_backend(name: str, source: str = "backend") -> None:
    """ValueError unless it is auto or the name of a backend."""
    if name != "auto" and name not in BACKENDS:
        raise ValueError(f"{source}: got {name!r}, expected auto, {', '.join(BACKENDS)}")


def choose(backend: str, q: Tensor, k: Tensor, v: Tensor, seen: Seen) -> Choice:
    """The backend for these tensors. ValueError when the one asked for, in the call or by the variable, refuses."""
    source = "backend"
    if backend == "auto" and (backend := os.environ.get(VARIABLE) or "auto") != "auto":
        source = VARIABLE
        require_backend(backend, source)
    refusals: dict[str, str] = {}
    for name in _candidates(q.device.type) if backend == "auto" else (backend,):
        module = _load(name)
        if isinstance(module, str):
            refusals[name] = module
        elif (refusal := module.refusal(q, k, v, seen)) is not None:
            refusals[name] = refusal
        else:
            for refused, reason in refusals.items():
                _log_once(name, refused, reason)
            return Choice(name, module, refusals)
    raise ValueError(f"{source}: got {backend!r}, which {refusals[backend]}; expected another backend, or auto")


def run_forward(backend: str, q: Tensor, k: Tensor, v: Tensor, factor: Tensor, seen: Seen) -> Tensor:
    """The output, from the backend chosen for these tensors."""
    compute = choose(backend, q, k, v, seen).module.forward
    if torch.is_autocast_enabled(q.device.type):  # the dtype given is the dtype meant
        with torch.autocast(q.device.type, enabled=False):
            out: Tensor = compute(q, k, v, factor, seen)
    else:
        out = compute(q, k, v, factor, seen)
    return out


def run_backward(
    backend: str, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, factor: Tensor, seen: Seen
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv from the backend chosen for these tensors."""
    compute = choose(backend, q, k, v, seen).module.backward
    if grad.stride(-1) != 1:  # the gradient of a sum is one number, expanded
        grad = grad.contiguous()
    if torch.is_autocast_enabled(q.device.type):
        with torch.autocast(q.device.type, enabled=False):
            gradients: tuple[Tensor, Tensor, Tensor] = compute(grad, q, k, v, factor, seen)
    else:
        gradients = compute(grad, q, k, v, factor, seen)
    return gradients
