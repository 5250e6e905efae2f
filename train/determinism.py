"""`train.deterministic`: the same bits every time on GPUs, as a CPU gives them anyway."""

from __future__ import annotations

import os

import torch


def use_deterministic_kernels() -> None:
    """Of this process from now on: no kernel whose sums depend on timing; before the first matrix product.

    An operation that has no other kernel raises a RuntimeError that names it.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(mode=True)
