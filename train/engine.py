"""DeepSpeed behind a narrow door: one optimiser step, and a state that knows neither ZeRO stage nor world size.

The state is gathered parameter by parameter (weights and both Adam moments in float32, by name), so a checkpoint holds
plain tensors, needs no pickle, and can be loaded under another stage or number of workers. In float32 on the same
number of workers it is exact: training goes on bit for bit.
"""

from __future__ import annotations

import math
import os
import sys
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from icrl.config import TrainConfig
from train.batch_plan import BatchPlan
from train.heartbeat import patience
from train.shards import KINDS, shards_of

SCALER = "scaler/state"
"""Key of the loss scale in a state of fp16: float64 [scale, iteration, iteration of the last overflow, hysteresis,
skipped steps]."""


_FRUGAL = {
    "stage3_max_live_parameters": 0,
    "stage3_max_reuse_distance": 0,
    "stage3_prefetch_bucket_size": 0,
    "reduce_bucket_size": 5_000_000,
}
"""Who takes stage 3 wants memory: a layer's weights go back to their ranks as soon as it has run. By default DeepSpeed
keeps up to a billion gathered ones, so that a model of this project's size would take more than with stage 0."""


class DivergedError(RuntimeError):
    """A loss or gradient that is not finite; no parameter and no moment was changed by it."""

    def __init__(self, message: str, own_loss: float | None = None) -> None:
        super().__init__(message)
        self.own_loss = own_loss
        """Mean loss of this rank's share of the batch; None where no batch of the training is to blame."""


@dataclass(frozen=True)
class StepResult:
    """One optimiser step, the same on every rank."""

    loss: float
    """Mean over the global batch, nats per round."""
    grad_norm: float
    """Norm of the global gradient before clipping; 0 where the step was skipped."""
    skipped: bool = False
    """fp16 alone: the gradient overflowed, the loss scale was lowered and nothing was updated."""


class Engine:
    """A model in DeepSpeed's hands. Every rank makes one and calls its methods together."""

    def __init__(self, model: nn.Module, config: TrainConfig, plan: BatchPlan) -> None:
        """`model(*batch)` must return the scalar loss of a micro-batch.

        The process group must exist (`torch.distributed.init_process_group`).
        """
        deepspeed = _import_deepspeed(compiler=config.compile)
        # DeepSpeed would make its own, whose collectives wait for half an hour whatever the world's timeout is
        timeout, _ = patience(config.collective_timeout_s, dist.get_backend())
        deepspeed.utils.groups._WORLD_GROUP = dist.new_group(timeout=timeout)
        self._stage, self._half = config.zero_stage, config.precision == "fp16"
        self._shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        optimizer = torch.optim.AdamW(
            parameter_groups(model, config.optimizer.weight_decay),
            lr=config.optimizer.lr,
            betas=(config.optimizer.beta1, config.optimizer.beta2),
            # DeepSpeed's own optimiser for the host would be compiled for minutes; torch's fused one is there already
            fused=True if config.offload == "optimizer" else None,
        )
        if config.compile:
            model.compile()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._engine, self._optimizer, _, _ = deepspeed.initialize(
                model=model, optimizer=optimizer, config=deepspeed_settings(config, plan), dist_init_required=False
            )
        self._parameters = dict(self._engine.module.named_parameters())
        self._shards = shards_of(config.zero_stage, self._optimizer)
        self._skipped = 0

    @property
    def device(self) -> torch.device:
        return torch.device(self._engine.device)

    @property
    def module(self) -> nn.Module:
        module: nn.Module = self._engine.module
        return module

    def step(self, micro_batches: Iterable[tuple[Tensor, ...]], lr: float) -> StepResult:
        """One optimiser step over this rank's micro-batches.

        Raises:
            DivergedError: the loss or the gradient of the global batch is not finite; on every rank, and nothing was
                updated. In fp16 a gradient that is not finite only skips the step, until the loss scale is at its end.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        batches = list(micro_batches)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for batch in batches[:-1]:
            total += self._accumulate(batch)
            self._engine.step()  # counts the micro-batch
        total += self._accumulate(batches[-1])
        own = float(total / len(batches))
        mean = self._mean(total / len(batches))
        if not math.isfinite(mean):
            raise DivergedError(f"loss is {mean}", own)
        norm = self._replicated_norm()
        if not math.isfinite(norm):
            raise DivergedError(f"the gradient's norm is {norm}", own)
        try:
            self._engine.step()
        except Exception as error:  # DeepSpeed raises no class of its own
            if "minimum" not in str(error):
                raise
            raise DivergedError("the gradient overflows at the smallest loss scale", own) from error
        skipped = bool(getattr(self._optimizer, "overflow", False))
        if skipped and not self._half:  # stages 1 to 3 look at the norm first and leave out the update
            raise DivergedError("the gradient's norm is not finite", own)
        self._skipped += skipped
        return StepResult(mean, 0.0 if skipped else float(self._engine.get_global_grad_norm() or norm), skipped)

    def _accumulate(self, batch: tuple[Tensor, ...]) -> Tensor:
        """Add a micro-batch's gradient; its loss, float64."""
        loss = self._engine(*batch)
        self._engine.backward(loss)
        detached: Tensor = loss.detach().double()
        return detached

    @torch.no_grad()
    def evaluate(self, batch: tuple[Tensor, ...]) -> float:
        """The loss of a batch, nats per round, without gradients; under ZeRO-3 all ranks call it together."""
        self._engine.eval()
        loss = float(self._engine(*batch))
        self._engine.train()
        return loss

    @torch.no_grad()
    def state(self, *, keep: bool = True) -> dict[str, Tensor]:
        """Weights and moments as float32 CPU tensors, `<kind>/<parameter name>`; gathered, the same on every rank.

        In fp16 the weights are the float32 masters, and the state of the loss scale comes with them (`SCALER`). All
        ranks call it together; a rank that does not `keep` it gets nothing, and holds one parameter at a time.
        """
        gathered = {SCALER: self._scaler_state()} if self._half and keep else {}
        for name, parameter in self._parameters.items():
            for kind in KINDS:
                full = self._shards.gather(parameter, kind)
                if keep:
                    gathered[f"{kind}/{name}"] = full.float().cpu().contiguous()
        return gathered

    @torch.no_grad()
    def weights(self, *, keep: bool = True) -> dict[str, Tensor]:
        """The model's state dict as float32 CPU tensors; gathered, and kept, as `state`."""
        gathered = {}
        for name, parameter in self._parameters.items():
            full = self._shards.gather(parameter, "weight")
            if keep:
                gathered[name] = full.float().cpu()
        return gathered

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Continue from `state()` after `step` optimiser steps.

        Raises:
            ValueError: the tensors are those of another model.
        """
        expected = {f"{kind}/{name}": shape for name, shape in self._shapes.items() for kind in KINDS}
        got = {key: tensor.shape for key, tensor in tensors.items() if key != SCALER}
        if expected != got:
            odd = next(key for key in sorted({*expected, *got}) if expected.get(key) != got.get(key))
            have, want = got.get(odd, "nothing"), expected.get(odd, "nothing")
            raise ValueError(f"checkpoint of another model: {odd} is {have} in the checkpoint, {want} in the model")
        if self._half and SCALER in tensors:
            self._load_scaler(tensors[SCALER])
        self._shards.make_moments(step - self._skipped)
        for name, parameter in self._parameters.items():
            for kind in KINDS:
                self._shards.scatter(parameter, kind, tensors[f"{kind}/{name}"].to(self.device))

    def _scaler_state(self) -> Tensor:
        scaler = self._optimizer.loss_scaler
        values = (scaler.cur_scale, scaler.cur_iter, scaler.last_overflow_iter, scaler.cur_hysteresis, self._skipped)
        return torch.tensor(values, dtype=torch.float64)

    def _load_scaler(self, state: Tensor) -> None:
        scaler = self._optimizer.loss_scaler
        scaler.cur_scale = float(state[0])
        counts = [int(value) for value in state[1:].tolist()]
        scaler.cur_iter, scaler.last_overflow_iter, scaler.cur_hysteresis, self._skipped = counts

    def _replicated_norm(self) -> float:
        """The gradient's norm where DeepSpeed does not keep it (stage 0), after the ranks' gradients are averaged."""
        gradients = [p.grad for p in self._parameters.values() if self._stage == 0 and p.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients)) if gradients else 0.0

    def _mean(self, value: Tensor) -> float:
        if dist.get_world_size() > 1:
            dist.all_reduce(value)
        return float(value) / dist.get_world_size()


def deepspeed_settings(config: TrainConfig, plan: BatchPlan) -> dict[str, Any]:
    """What `deepspeed.initialize` is told."""
    settings: dict[str, Any] = {
        "train_batch_size": plan.global_batch,
        "train_micro_batch_size_per_gpu": plan.micro_batch,
        "gradient_accumulation_steps": plan.accumulation,
        "gradient_clipping": config.clip,
        "zero_optimization": {"stage": config.zero_stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
    }
    if config.zero_stage == 3:
        settings["zero_optimization"] |= _FRUGAL
    if config.offload == "optimizer":
        settings["zero_optimization"]["offload_optimizer"] = {"device": "cpu"}
    if config.precision == "bf16":
        settings["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    if config.precision == "fp16":
        # not torch_autocast: its gradient scaler clips the scaled gradient, and after an overflow keeps the scale
        settings["fp16"] = {"enabled": True, "initial_scale_power": 16}
    return settings


def _import_deepspeed(*, compiler: bool) -> Any:
    if not compiler:  # DeepSpeed would import the compiler it does not use: 1 s and 40 MB
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    elif "torch._dynamo" in sys.modules:
        torch._dynamo.config.disable = False
    else:
        os.environ.pop("TORCHDYNAMO_DISABLE", None)
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # FutureWarnings of torch about the collectives that DeepSpeed calls
    warnings.filterwarnings("ignore", category=FutureWarning)
    import deepspeed

    # the shared-memory all-reduce would be compiled for minutes on first use, and serves inference only
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist.get_backend(), verbose=False, auto_mpi_discovery=False)
    return deepspeed


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices alone: not for biases, norms and other vectors."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
