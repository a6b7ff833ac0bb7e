"""The one recipe for the native libraries, run by setup.py at install and by fastdiff.native on first use.

Standard library only, and nothing of torch is imported: its headers and version are found on disk, so that the recipe
also runs where fastdiff itself cannot be imported yet.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
INSTALLED = HERE / "_native"
"""Where an install puts the libraries it built."""

ABI = ["-DTORCH_TARGET_VERSION=0x020a000000000000"]  # torch 2.10: the library serves that and every later one
COMMON = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-fvisibility-inlines-hidden", "-Wall", "-Wextra"]
# ffp-contract: fused multiply-adds. The warnings left out are GCC's about its own AVX-512 headers and wide arguments.
KERNEL = [
    "-O3",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-exceptions",
    "-fno-trapping-math",
    "-Wno-psabi",
    "-Wno-maybe-uninitialized",
]
X86_LEVELS = {
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": [
        "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mf16c",
        "-mprefer-vector-width=512",
    ],
}  # fmt: skip
LEVEL_SOURCES = {"level": [], "level_exact": ["-ffp-contract=off"]}
"""What is compiled once a level, the second where every rounding is specified."""
CUDA_ARCHITECTURES = ("80", "90")
"""Machine code for these; PTX of the last, which the driver compiles for GPUs newer than it."""


class BuildFailed(RuntimeError):
    """The native code could not be compiled; the message says why in one line."""


@dataclass(frozen=True)
class Torch:
    """An installed torch: its folder and version ("2.13.0+cpu")."""

    root: Path
    version: str

    @property
    def tag(self) -> str:
        """Major and minor version, and whether it knows CUDA."""
        return ".".join(self.version.split(".")[:2]) + ("-cuda" if self.has_cuda else "")

    @property
    def has_cuda(self) -> bool:
        return (self.root / "lib" / "libtorch_cuda.so").exists()

    @property
    def includes(self) -> list[str]:
        return ["-isystem", str(self.root / "include")]


@dataclass(frozen=True)
class Unit:
    """One source file and the command that compiles it, but for its output."""

    source: Path
    name: str
    command: tuple[str, ...]


def find_torch() -> Torch | None:
    """The torch this interpreter would import, or None."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        return None
    root = Path(spec.submodule_search_locations[0])
    try:
        found = re.search(r"__version__ = '([^']+)'", (root / "version.py").read_text())
    except OSError:
        return None
    return Torch(root, found[1]) if found else None


def source_root() -> Path | None:
    """The folder csrc: inside the package when installed, beside it in a checkout."""
    return next((p for p in (HERE / "csrc", HERE.parent / "csrc") if (p / "cpu").is_dir()), None)


def find_compiler() -> str | None:
    """$CXX, or the first C++ compiler on the path."""
    # Of "ccache g++" the compiler itself: it is also handed to nvcc, which takes one word.
    candidates = [*reversed(os.environ.get("CXX", "").split()), "g++", "c++", "clang++"]
    return next((path for name in candidates if (path := shutil.which(name))), None)


def find_nvcc() -> str | None:
    """nvcc on the path or under $CUDA_HOME."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    return shutil.which("nvcc") or shutil.which(str(Path(home) / "bin" / "nvcc"))


def is_x86() -> bool:
    """Whether the libraries are for x86-64, which has levels to choose from."""
    return platform.machine().lower() in ("x86_64", "amd64")


def units(target: str, root: Path, torch: Torch) -> list[Unit]:
    """What the library for device type `target` ("cpu" or "cuda") is made of."""
    compiler = find_compiler()
    if compiler is None:
        raise BuildFailed("no C++ compiler found: install g++ or clang++, or set CXX")
    return (
        cuda_units(root / "cuda", torch, compiler)
        if target == "cuda"
        else cpu_units(root / "cpu", torch, compiler)
    )


def cpu_units(folder: Path, torch: Torch, compiler: str) -> list[Unit]:
    """The kernels once a level, the choice among levels, and the rest as seen by torch."""
    levels = {"generic": [], **(X86_LEVELS if is_x86() else {})}
    found = [
        Unit(
            folder / f"{source}.cpp",
            f"{source}_{name}",
            (compiler, *COMMON, *KERNEL, *flags, *extra, f"-DFASTDIFF_LEVEL={name}"),
        )
        for source, extra in LEVEL_SOURCES.items()
        for name, flags in levels.items()
    ]
    choice = ["-DFASTDIFF_X86_LEVELS"] if is_x86() else []
    for source in sorted(folder.glob("*.cpp")):
        if source.stem not in LEVEL_SOURCES:
            command = (compiler, *COMMON, "-O2", *ABI, *choice, *torch.includes)
            found.append(Unit(source, source.stem, command))
    return found


def cuda_units(folder: Path, torch: Torch, compiler: str) -> list[Unit]:
    """Device code by nvcc, knowing nothing of torch; registration by the host compiler."""
    nvcc = find_nvcc()
    if nvcc is None:
        raise BuildFailed("nvcc not found: install the CUDA toolkit, or set CUDA_HOME")
    newest = CUDA_ARCHITECTURES[-1]
    targets = [*((a, f"sm_{a}") for a in CUDA_ARCHITECTURES), (newest, f"compute_{newest}")]
    architectures = [f"-gencode=arch=compute_{arch},code={code}" for arch, code in targets]
    # nvcc compiles the registration too, and links: it alone knows where its headers and libraries are, since the
    # nvcc on the path may be a script that calls the real one
    base = (nvcc, "-std=c++17", "-ccbin", compiler)
    device = (*base, "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden", *architectures)
    host = (*base, "-O2", f"-Xcompiler={','.join(COMMON[1:])}", *ABI, "-DUSE_CUDA", *torch.includes)
    return [
        *(Unit(source, source.stem, device) for source in sorted(folder.glob("*.cu"))),
        *(Unit(source, f"{source.stem}_host", host) for source in sorted(folder.glob("*.cpp"))),
    ]


def linker(target: str, torch: Torch) -> list[str]:
    """The command that links against torch's own libraries, which are loaded already when ours is."""
    compiler = find_compiler() or ""
    flags = ["-shared", f"-L{torch.root / 'lib'}", "-ltorch_cpu"]
    if target == "cuda":  # with the CUDA runtime inside, which is nvcc's default
        flags += ["-ltorch_cuda"] if torch.has_cuda else []
        return [find_nvcc() or "nvcc", "-ccbin", compiler, *flags]
    return [compiler, *flags, *(["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else [])]


def library_name(target: str, root: Path, torch: Torch) -> str:
    """The library's file name. It carries a hash of all that decides its contents (sources, recipe, torch, machine), so
    a stale library is never loaded."""
    digest = hashlib.sha256(f"{torch.tag} {sys.platform} {platform.machine()}".encode())
    for path in [HERE / "_build.py", *sorted(root.glob("*.h")), *sorted((root / target).iterdir())]:
        digest.update(path.name.encode() + path.read_bytes())
    return f"{target}-{digest.hexdigest()[:16]}.so"


def build(target: str, folder: Path, *, jobs: int | None = None) -> Path:
    """Compiles the library for `target` into folder and returns its path. Raises BuildFailed."""
    torch, root = find_torch(), source_root()
    if torch is None:
        raise BuildFailed("torch is not installed: pip install torch")
    if root is None:
        raise BuildFailed("the C++ sources are missing from this install: reinstall fastdiff")
    if os.name != "posix":
        raise BuildFailed("the native code is built with g++ or clang++ on Linux and macOS only")
    parts = units(target, root, torch)
    path = folder / library_name(target, root, torch)
    compile_and_link(parts, linker(target, torch), path, jobs or int(os.environ.get("MAX_JOBS") or 2))
    return path


def compile_and_link(parts: Sequence[Unit], link: Sequence[str], path: Path, jobs: int) -> None:
    """Compiles the parts, `jobs` at once, links them, and renames the result to `path` in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fastdiff-") as scratch:
        objects = [str(Path(scratch) / f"{part.name}.o") for part in parts]
        commands = [
            [*part.command, "-c", str(part.source), "-o", out]
            for part, out in zip(parts, objects, strict=True)
        ]
        with ThreadPoolExecutor(max_workers=max(jobs, 1)) as pool:
            list(pool.map(run, commands))
        linked = path.with_name(f".{path.name}.{os.getpid()}")
        run([link[0], *objects, *link[1:], "-o", str(linked)])
        os.replace(linked, path)


def run(command: Sequence[str]) -> None:
    """Runs one compiler. Raises BuildFailed with its first error line."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        reason = next((line for line in lines if "error:" in line or "fatal" in line), lines[-1])
        raise BuildFailed(f"{Path(command[0]).name} failed: {reason}")


def build_host(folder: Path) -> Path | None:
    """Compiles the pybind11 module fastdiff._host into folder; None where pybind11 or its sources are not there."""
    spec, root, compiler = importlib.util.find_spec("pybind11"), source_root(), find_compiler()
    if spec is None or not spec.submodule_search_locations or root is None or compiler is None:
        return None
    includes = [Path(spec.submodule_search_locations[0]) / "include", sysconfig.get_path("include")]
    path = folder / f"_host{sysconfig.get_config_var('EXT_SUFFIX')}"
    defines = [f'-DFASTDIFF_COMPILER="{Path(compiler).name}"']
    command = (compiler, *COMMON, "-O2", *defines, *(f"-I{p}" for p in includes))
    link = [compiler, "-shared", *(["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else [])]
    compile_and_link([Unit(root / "host" / "host.cpp", "host", command)], link, path, 1)
    return path
