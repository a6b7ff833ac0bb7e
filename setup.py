"""Builds the native libraries where the build environment has torch and a compiler; otherwise the first use does."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from setuptools import Extension, find_namespace_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def recipe() -> ModuleType:
    """fastdiff/_build.py by its path: the package itself needs torch."""
    spec = importlib.util.spec_from_file_location("_fastdiff_build", ROOT / "fastdiff" / "_build.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class BuildNative(build_ext):
    """Runs the recipe into the package; a failure leaves an install that compiles on first use."""

    def run(self) -> None:
        build = recipe()
        in_place = self.inplace or self.editable_mode
        package = ROOT / "fastdiff" if in_place else Path(self.build_lib) / "fastdiff"
        torch = build.find_torch()
        # a torch without CUDA could not load the CUDA library, which takes minutes to compile
        targets = ["cpu", *(["cuda"] if torch and torch.has_cuda and build.find_nvcc() else [])]
        for target in targets:
            self.attempt(target, lambda target=target: build_library(build, target, package / "_native"))
        self.attempt("host", lambda: build.build_host(package))

    def attempt(self, name: str, make: object) -> None:
        """Calls make(); a failed build is announced, not raised."""
        try:
            self.announce(f"fastdiff: {name}: {make()}", level=2)  # type: ignore[operator]
        except RuntimeError as error:
            self.warn(f"fastdiff: {name} was not built, it will be tried again on first use: {error}")

    def get_outputs(self) -> list[str]:
        return []

    def get_output_mapping(self) -> dict[str, str]:
        return {}


def build_library(build: ModuleType, target: str, folder: Path) -> Path:
    """Builds one library unless it is there already, and removes older ones of its kind."""
    path = folder / build.library_name(target, build.source_root(), build.find_torch())
    if not path.exists():
        build.build(target, folder)
    for old in folder.glob(f"{target}-*.so"):
        if old != path:
            old.unlink()
    return path


def packages() -> list[str]:
    """The package, its sub-packages, and kernels/ and csrc/ as parts of it."""
    inside = find_namespace_packages(str(ROOT), include=["fastdiff", "fastdiff.*"])
    sources = [f"fastdiff.{p.relative_to(ROOT).as_posix().replace('/', '.')}" for p in folders(ROOT / "csrc")]
    return [*inside, "fastdiff.kernels", *sources]


def folders(top: Path) -> list[Path]:
    """A folder and all below it."""
    return [top, *sorted(path for path in top.rglob("*") if path.is_dir())]


native = importlib.util.find_spec("torch") is not None
setup(
    packages=packages(),
    package_dir={"fastdiff.kernels": "kernels", "fastdiff.csrc": "csrc"},
    package_data={
        "fastdiff": ["py.typed", "**/*.safetensors", "**/*.json", "web/static/*"],
        "": ["*.h", "*.cpp", "*.cu", "*.cuh"],
    },
    # a name for the wheel to be platform-specific; BuildNative ignores its (empty) sources
    ext_modules=[Extension("fastdiff._native", [])] if native else [],
    cmdclass={"build_ext": BuildNative},
)
