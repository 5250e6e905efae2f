"""The instruction sets that kernels are compiled for, and those that this machine runs."""

from __future__ import annotations

import functools
import platform
import sys
from pathlib import Path
from types import MappingProxyType

_AVX2 = ("-mavx2", "-mfma", "-mf16c")

FLAGS = MappingProxyType(
    {
        "avx512": (*_AVX2, "-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mprefer-vector-width=512"),
        "avx2": _AVX2,
        "sse2": ("-msse2",),
        "baseline": (),
    }
)
"""Compiler flags of each instruction set, the fastest first; sse2 is every x86-64, baseline any other machine."""

_NEEDS = {
    "avx512": {"avx512f", "avx512vl", "avx512bw", "avx512dq", "avx2", "fma", "f16c"},
    "avx2": {"avx2", "fma", "f16c"},
    "sse2": set(),
}


def _cpu_flags() -> set[str]:
    """What the kernel lets programs use; empty where it does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.split(":", 1)[1].split()) for line in lines if line.startswith("flags")), set())


@functools.cache
def machine_isas() -> tuple[str, ...]:
    """The instruction sets this machine runs, the fastest first; never empty."""
    if platform.machine().lower() not in {"x86_64", "amd64"} or sys.maxsize < 2**32:
        return ("baseline",)
    has = _cpu_flags()
    return tuple(isa for isa, needs in _NEEDS.items() if needs <= has)


def wanted_isas(forced: str | None) -> tuple[str, ...]:
    """What to try, in this order: the one that ICRL_NATIVE_ISA forces, else all that the machine runs.

    Raises:
        ValueError: if ICRL_NATIVE_ISA is not one of the machine's.
    """
    if not forced:
        return machine_isas()
    if forced not in machine_isas():
        raise ValueError(
            f"ICRL_NATIVE_ISA = {forced}: expected one that this machine runs, {', '.join(machine_isas())}"
        )
    return (forced,)
