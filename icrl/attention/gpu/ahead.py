"""Compiles a launch for a GPU that is not there and reads what came out: registers, spills, instructions per score.

Needs Triton and its own ptxas and nvdisasm, no GPU and no driver. The launch may hold tensors of the device "meta".
"""

from __future__ import annotations

import collections
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from icrl.attention.gpu.launch import Launch

SHARED_LIMIT = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}
"""Bytes of shared memory a program may take, by compute capability."""
POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
}
_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_LINE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)\s*([^;]*);")


@dataclass(frozen=True)
class Compiled:
    """What the compiler made of one launch."""

    registers: int
    """Of one thread."""
    stack: int
    """Bytes of stack and local memory of one thread; spills end here."""
    shared: int
    """Bytes of shared memory of one program."""
    instructions: collections.Counter[str]
    """How often each instruction occurs, by its name with modifiers."""
    loops: tuple[collections.Counter[str], ...]
    """The same for the body of every innermost loop, in the order of the code."""

    def count(self, prefix: str) -> int:
        """Instructions whose name starts with the prefix."""
        return sum(n for name, n in self.instructions.items() if name.startswith(prefix))


def signature(launch: Launch) -> tuple[dict[str, str], dict[str, Any], dict[tuple[int], Any]]:
    """Types, constants and alignments of the arguments, as the launch would specialise them."""
    types, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(launch.kernel.params):
        name, value = parameter.name, launch.arguments[parameter.name]
        if isinstance(value, torch.Tensor):
            types[name] = POINTERS[value.dtype]
            attributes[(index,)] = [["tt.divisibility", 16]]
        elif parameter.is_constexpr or (value == 1 and not parameter.do_not_specialize):
            types[name] = "constexpr"
            constants[name] = value
        else:
            types[name] = "fp32" if isinstance(value, float) else "i32"
            if not isinstance(value, float) and not parameter.do_not_specialize and value % 16 == 0:
                attributes[(index,)] = [["tt.divisibility", 16]]
    return types, constants, attributes


def innermost_loops(sass: str) -> tuple[collections.Counter[str], ...]:
    """Instruction counts between every backward branch and its target that holds no other loop."""
    code = [(int(m[1], 16), m[2], m[3]) for line in sass.splitlines() if (m := _LINE.match(line))]
    found: list[tuple[int, int]] = []
    for address, name, operands in code:
        target = re.search(r"0x([0-9a-f]+)\s*$", operands.strip()) if name.startswith("BRA") else None
        # the branch to itself that ends every kernel is no loop
        if target is not None and int(target[1], 16) < address:
            found.append((int(target[1], 16), address))
    inner = [x for x in found if not any(y != x and x[0] <= y[0] and y[1] <= x[1] for y in found)]
    return tuple(
        collections.Counter(name for address, name, _ in code if start <= address <= stop) for start, stop in inner
    )


def _run(tool: str, *arguments: str | Path) -> str:
    return subprocess.run([_TOOLS / tool, *arguments], check=True, capture_output=True, text=True).stdout


def compile_for(launch: Launch, capability: int) -> Compiled:
    """The launch compiled for a compute capability: 80, 90 and so on."""
    types, constants, attributes = signature(launch)
    source = ASTSource(fn=launch.kernel, signature=types, constexprs=constants, attrs=attributes)
    kernel = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch.options)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(kernel.asm["cubin"])
        usage, sass = _run("cuobjdump", "-res-usage", cubin), _run("cuobjdump", "-sass", cubin)
    resources = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    names = collections.Counter(m[2] for line in sass.splitlines() if (m := _LINE.match(line)))
    return Compiled(
        registers=resources["REG"],
        stack=resources["STACK"] + resources["LOCAL"],
        shared=kernel.metadata.shared,
        instructions=names,
        loops=innermost_loops(sass),
    )
