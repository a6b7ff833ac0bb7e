"""The recipe: names that change with what they are made of, errors of one line, first use, and the wheel."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from fastdiff import _build, native

ROOT = Path(__file__).resolve().parents[1]
TORCH = _build.find_torch()
assert TORCH is not None


def test_the_recipe_is_standard_library_only():
    names = set()
    for node in ast.walk(ast.parse(Path(_build.__file__).read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
    assert names <= sys.stdlib_module_names


def test_names_follow_the_sources_and_torch(tmp_path):
    sources = tmp_path / "csrc"
    shutil.copytree(_build.source_root(), sources)
    name = _build.library_name("cpu", sources, TORCH)
    assert name == _build.library_name("cpu", _build.source_root(), TORCH)
    assert name != _build.library_name("cpu", sources, _build.Torch(TORCH.root, "3.1.0"))
    for changed in ("cpu/vector.h", "layout.h"):
        with open(sources / changed, "a") as handle:
            handle.write("// changed\n")
        assert (before := name) != (name := _build.library_name("cpu", sources, TORCH)), before
    cuda = _build.library_name("cuda", sources, TORCH)
    (sources / "cpu" / "vector.h").write_text("")
    assert cuda == _build.library_name("cuda", sources, TORCH)


def test_every_source_is_compiled():
    units = _build.units("cpu", _build.source_root(), TORCH)
    assert {unit.source for unit in units} == set((ROOT / "csrc" / "cpu").glob("*.cpp"))
    levels = {unit.name for unit in units if unit.source.name == "level.cpp"}
    assert levels == (
        {"level_generic", "level_avx2", "level_avx512"} if _build.is_x86() else {"level_generic"}
    )


def test_levels_share_no_symbols(tmp_path):
    """A symbol that two levels define would let the linker run AVX-512 code on a processor without it."""
    nm = shutil.which("nm")
    if not nm:
        pytest.skip("needs nm")
    units = [u for u in _build.units("cpu", _build.source_root(), TORCH) if u.name.endswith("_avx2")]
    for unit in units:
        out = tmp_path / f"{unit.name}.o"
        _build.run([*unit.command, "-O0", "-c", str(unit.source), "-o", str(out)])
        listing = subprocess.run(
            [nm, "-C", "--defined-only", str(out)], capture_output=True, text=True, check=True
        )
        symbols = [line.split(" ", 2)[-1] for line in listing.stdout.splitlines() if line[17:18] in "TWVuD"]
        assert symbols and all("fastdiff::avx2::" in symbol for symbol in symbols), symbols


def test_errors_are_one_line(tmp_path, monkeypatch):
    source = tmp_path / "broken.cpp"
    source.write_text("int main() { return missing; }\n")
    compiler = _build.find_compiler()
    unit = _build.Unit(source, "broken", (compiler,))
    with pytest.raises(_build.BuildFailed, match=r"^[^\n]* failed: [^\n]*missing[^\n]*$"):
        _build.compile_and_link([unit], [compiler], tmp_path / "out.so", 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["broken.cpp"]  # nothing half-written
    monkeypatch.setattr(_build, "find_compiler", lambda: None)
    with pytest.raises(_build.BuildFailed, match="no C\\+\\+ compiler found: install g\\+\\+"):
        _build.build("cpu", tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(_build, "find_nvcc", lambda: None)
    with pytest.raises(_build.BuildFailed, match="nvcc not found"):
        _build.build("cuda", tmp_path)
    monkeypatch.setattr(_build, "source_root", lambda: None)
    with pytest.raises(_build.BuildFailed, match="sources are missing"):
        _build.build("cpu", tmp_path)


def test_cxx_chooses_the_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert _build.find_compiler() is not None  # the next one found
    compiler = _build.find_compiler()
    monkeypatch.setenv("CXX", compiler)
    assert _build.find_compiler() == compiler


FIRST_USE = """
import logging, torch
logging.basicConfig(level=logging.INFO, format="%(message)s")
from pathlib import Path
from fastdiff import _build, native, ops
_build.INSTALLED = Path("nothing-installed")
x = torch.ones(2, 3)
assert torch.equal(ops.add_noise(x, x, 0.5, 0.25), 0.75 * x)
print(native.library("cpu"))
"""


@pytest.mark.skipif(native.problem("cpu") is not None, reason="no C++ kernels here")
def test_first_use_compiles_once_for_all_processes(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "FASTDIFF_BUILD"}
    environment |= {"FASTDIFF_CACHE": str(tmp_path), "MAX_JOBS": "2"}
    command = [sys.executable, "-c", FIRST_USE]
    both = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    results = [process.communicate(timeout=280) for process in both]
    assert [process.returncode for process in both] == [0, 0], results
    assert {out.strip() for out, _ in results} == {str(next(tmp_path.glob("cpu-*.so")))}
    assert sum(err.count("compiling the cpu kernels") for _, err in results) == 1
    assert sorted(p.suffix for p in tmp_path.iterdir()) == ["", ".so"]


WHEEL = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "torch" else find(name, *rest)
from setuptools import build_meta
print(build_meta.build_wheel(sys.argv[1]))
"""


def test_a_wheel_built_without_torch_carries_the_sources(tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, tree)
    for name in ("fastdiff", "kernels", "csrc"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    done = subprocess.run(
        [sys.executable, "-c", WHEEL, str(tmp_path)], cwd=tree, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("fastdiff-*-py3-none-any.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {f"fastdiff/csrc/{p.relative_to(ROOT / 'csrc')}" for p in (ROOT / "csrc").rglob("*.*")}
    wanted |= {f"fastdiff/kernels/{p.name}" for p in (ROOT / "kernels").glob("*.py")}
    wanted |= {str(p.relative_to(ROOT)) for p in (ROOT / "fastdiff").rglob("*.py")} | {"fastdiff/py.typed"}
    assert wanted <= names, wanted - names
    assert not any(name.startswith(("kernels/", "csrc/", "tests/")) for name in names)


def test_host_module():
    host = pytest.importorskip("fastdiff._host", reason="built only where pybind11 is")
    assert set(host.build_info()) == {"compiler", "cplusplus", "pybind11"}
    assert all(isinstance(value, bool) for value in host.cpu_features().values())
