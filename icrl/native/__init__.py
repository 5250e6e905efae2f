"""C++ kernels with a plain C ABI, compiled on first use and called through ctypes, which releases the GIL.

A kernel includes `vector.h` (vector types as wide as the instruction set) and `threads.h` (work divided over threads),
marks what it exports with `ICRL_EXPORT`, and is loaded with `library(source)`. Nothing is linked but libc and pthreads:
no C++ runtime, no torch. A machine that cannot compile says why, once, and its callers take their other path.

Environment: ICRL_NATIVE=0 turns native code off, ICRL_NATIVE_ISA forces an instruction set, CXX names the compiler,
ICRL_CACHE_DIR the place of what is compiled.
"""

from icrl.native.build import NativeUnavailableError, library, refusal
from icrl.native.isa import machine_isas

__all__ = ["NativeUnavailableError", "library", "machine_isas", "refusal"]
