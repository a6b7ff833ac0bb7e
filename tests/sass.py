"""Reads compiled GPU code: registers, stack, and which instructions a kernel uses. Needs no GPU."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Kernel:
    """name: as the compiler mangled it; instructions: how often each stands in the code, such as LDG.E.128."""

    name: str
    registers: int
    stack: int
    local: int
    instructions: Counter[str]

    def count(self, prefix: str) -> int:
        """How many instructions begin with prefix."""
        return sum(n for name, n in self.instructions.items() if name.startswith(prefix))


def cuobjdump() -> str:
    """The disassembler that Triton carries, or the toolkit's; skips the test where there is none."""
    triton = find_spec("triton")
    if triton is not None and triton.origin is not None:
        carried = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        if carried.exists():
            return str(carried)
    found = shutil.which("cuobjdump")
    if found is None:
        pytest.skip("needs cuobjdump, which comes with Triton and with the CUDA toolkit")
    return found


def read(path: Path, arch: str) -> list[Kernel]:
    """Every kernel of one architecture ("sm_90") in a cubin, object or shared library."""
    tool = cuobjdump()
    usage = _run(tool, "--dump-resource-usage", "-arch", arch, str(path))
    code = _run(tool, "-sass", "-arch", arch, str(path))
    bodies = dict(re.findall(r"Function : (\S+)\n(.*?)(?=Function : |\Z)", code, re.DOTALL))
    pattern = r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)"
    return [
        Kernel(name, int(registers), int(stack), int(local), _instructions(bodies[name]))
        for name, registers, stack, local in re.findall(pattern, usage)
    ]


def assert_no_spills(kernel: Kernel, *, registers: int) -> None:
    """No stack, no local memory, and at most so many registers a thread (each block of 256 then keeps an SM full)."""
    assert (kernel.stack, kernel.local) == (0, 0), kernel
    assert kernel.count("LDL") == kernel.count("STL") == 0, kernel
    assert kernel.registers <= registers, kernel


def _instructions(body: str) -> Counter[str]:
    """Opcode counts of lines such as `/*0490*/ @!P0 LDG.E.128 R4, ... ;`."""
    return Counter(re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", body))


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
