"""Where DeepSpeed's ZeRO stages keep their shares of weights and Adam moments, read and written by parameter.

DeepSpeed's own accessors (`safe_get_full_optimizer_state`) miss parameter groups after the first under ZeRO-1, and its
setters cannot fill a padded ZeRO-3 partition; both are covered here (seen in 0.19.8). Every function is collective: all
ranks call it for the same parameter in the same order.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter

Kind = Literal["weight", "exp_avg", "exp_avg_sq"]
KINDS: tuple[Kind, ...] = ("weight", "exp_avg", "exp_avg_sq")


class Shards(Protocol):
    """Full float32 tensors of one parameter, gathered from and scattered to the ranks."""

    def make_moments(self, step: int) -> None:
        """Adam's state as it is after `step` steps, its moments zero."""

    def gather(self, parameter: Parameter, kind: Kind) -> Tensor:
        """The full tensor, the same on every rank."""

    def scatter(self, parameter: Parameter, kind: Kind, value: Tensor) -> None:
        """Put this rank's share of the full tensor in its place."""


def shards_of(stage: int, optimizer: Any) -> Shards:
    """The accessor for a ZeRO stage; `optimizer` is what `deepspeed.initialize` returned."""
    match stage:
        case 0:
            return _Replicated(optimizer)
        case 1 | 2:
            return _Partitioned(optimizer)
        case _:
            return _FullyPartitioned(optimizer)


def _fresh_state(like: Tensor, step: int) -> dict[str, Tensor]:
    return {
        "step": torch.tensor(float(step)),
        "exp_avg": torch.zeros_like(like, requires_grad=False),
        "exp_avg_sq": torch.zeros_like(like, requires_grad=False),
    }


class _Replicated:
    """Stage 0: every rank holds everything."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer

    def make_moments(self, step: int) -> None:
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                self._optimizer.state[parameter] = _fresh_state(parameter, step)

    def gather(self, parameter: Parameter, kind: Kind) -> Tensor:
        return self._at(parameter, kind).detach().clone()

    def scatter(self, parameter: Parameter, kind: Kind, value: Tensor) -> None:
        self._at(parameter, kind).copy_(value)

    def _at(self, parameter: Parameter, kind: Kind) -> Tensor:
        if kind == "weight":
            return parameter.data
        tensor: Tensor = self._optimizer.state[parameter][kind]
        return tensor


class _Partitioned:
    """Stages 1 and 2: each rank holds a slice of each group's flat buffer, which may cut through a parameter."""

    def __init__(self, optimizer: Any) -> None:
        self._flat = optimizer.single_partition_of_fp32_groups
        self._state = optimizer.optimizer.state

    def make_moments(self, step: int) -> None:
        for flat in self._flat:
            self._state[flat] = _fresh_state(flat, step)

    def gather(self, parameter: Parameter, kind: Kind) -> Tensor:
        full = torch.zeros(parameter.numel(), dtype=torch.float32, device=parameter.device)
        if (mine := self._mine(parameter, kind)) is not None:
            share, start = mine
            full[start : start + share.numel()] = share
        if dist.get_world_size() > 1:
            dist.all_reduce(full)  # the shares do not overlap: each element is added to zeros
        return full.view(parameter.shape)

    def scatter(self, parameter: Parameter, kind: Kind, value: Tensor) -> None:
        if (mine := self._mine(parameter, kind)) is not None:
            share, start = mine
            share.copy_(value.reshape(-1)[start : start + share.numel()])
        if kind == "weight":
            parameter.data.copy_(value)

    def _mine(self, parameter: Parameter, kind: Kind) -> tuple[Tensor, int] | None:
        mapping = parameter._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:
            return None
        flat = self._flat[mapping.param_group_index]
        source = flat if kind == "weight" else self._state[flat][kind]
        address = mapping.hp_fragment_address
        return source.data.narrow(0, address.start, address.numel), mapping.lp_fragment_address.start


class _FullyPartitioned:
    """Stage 3: each rank holds an equal slice of every parameter, the last one padded."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer
        self._state = optimizer.optimizer.state

    def make_moments(self, step: int) -> None:
        for flat in self._optimizer.fp32_partitioned_groups_flat:
            self._state[flat] = _fresh_state(flat, step)

    def gather(self, parameter: Parameter, kind: Kind) -> Tensor:
        share = self._mine(parameter, kind).contiguous()
        shares = [torch.empty_like(share) for _ in range(dist.get_world_size())]
        dist.all_gather(shares, share)
        full = torch.cat(shares)[: parameter.ds_numel]  # type: ignore[attr-defined]
        return full.view(parameter.ds_shape)  # type: ignore[attr-defined]

    def scatter(self, parameter: Parameter, kind: Kind, value: Tensor) -> None:
        share = self._mine(parameter, kind)
        start = dist.get_rank() * share.numel()
        piece = value.reshape(-1)[start : start + share.numel()]
        share[: piece.numel()].copy_(piece)
        if kind == "weight":
            parameter.ds_tensor.data.copy_(share)  # type: ignore[attr-defined]

    def _mine(self, parameter: Parameter, kind: Kind) -> Tensor:
        group, start, length = self._optimizer.grad_position[self._optimizer.get_param_id(parameter)]
        flat = self._optimizer.fp32_partitioned_groups_flat[group]
        source: Tensor = flat if kind == "weight" else self._state[flat][kind]
        return source.data.narrow(0, start, length)
