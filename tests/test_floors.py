"""The floors: a file imports only from its own floor or from below, and everything has a floor."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

FLOORS: dict[str, int] = {
    **dict.fromkeys(
        [
            "errors",
            "files",
            "choices",
            "counter",
            "reference",
            "backend",
            "native",
            "_build",
            "_host",
            "kernels",
        ],
        0,
    ),
    "ops": 1,
    **dict.fromkeys(["levels", "spacings", "schedules", "predictions", "plan", "samplers", "continuous"], 2),
    **dict.fromkeys(
        [
            "guidance",
            "lazy_guidance",
            "noted",
            "inpainting",
            "noise",
            "uniform_noise",
            "corruptions",
            "thresholding",
            "calling",
            "events",
            "executor",
            "sampling",
            "adaptive",
            "graphs",
        ],
        3,
    ),
    **dict.fromkeys(
        [
            "nn",
            "images",
            "watermark",
            "sounds",
            "clips",
            "models",
            "training",
            "cold",
            "diffusers",
            "kdiffusion",
            "patching",
        ],
        4,
    ),
    **dict.fromkeys(["apps"], 5),
    **dict.fromkeys(["cli", "web", "__main__"], 6),
}
SOURCES = sorted([*(ROOT / "fastdiff").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")])


def module_name(path: Path) -> str:
    """fastdiff/ops/add_noise.py -> fastdiff.ops.add_noise; kernels/x.py -> fastdiff.kernels.x."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[0] == "kernels":
        parts.insert(0, "fastdiff")
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> set[str]:
    """Every fastdiff module that a file imports anywhere in it, lazily or not (types-only imports included)."""
    here = module_name(path).split(".")
    package = here if path.name == "__init__.py" else here[:-1]
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            # `from fastdiff import ops` names a module; `from fastdiff.ops import add_noise` names its contents
            names.update(f"{module}.{alias.name}" if module == "fastdiff" else module for alias in node.names)
    return {name for name in names if name.split(".")[0] == "fastdiff"} - {"fastdiff.__version__"}


def room(module: str) -> str:
    """fastdiff.ops.add_noise -> ops."""
    return module.split(".")[1]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    module = module_name(path)
    if module == "fastdiff":
        return  # the front door may show every floor
    assert room(module) in FLOORS, f"{module} has no floor: add it to FLOORS"
    floor = FLOORS[room(module)]
    for name in imported(path):
        assert name != "fastdiff", (
            f"{module} imports the front door; import from the module that defines the name"
        )
        assert room(name) in FLOORS, (
            f"{module} imports {name}, which has no floor: import from the module that defines it"
        )
        assert FLOORS[room(name)] <= floor, (
            f"{module} (floor {floor}) imports {name} (floor {FLOORS[room(name)]})"
        )


def test_the_build_script_needs_only_the_standard_library() -> None:
    tree = ast.parse((ROOT / "fastdiff" / "_build.py").read_text())
    top = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = {alias.name for node in top if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in top if isinstance(node, ast.ImportFrom)}
    assert not {name.split(".")[0] for name in names} & {"torch", "numpy", "fastdiff", "setuptools"}


def test_the_contributing_guide_shows_the_same_floors() -> None:
    rows = re.findall(r"^\| (\d) \| ([^|]*) \|", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.MULTILINE)
    shown = {name: int(floor) for floor, names in rows for name in re.findall(r"`(\w+)`", names)}
    internal = {"_build", "_host", "__main__"}
    assert shown == {name: floor for name, floor in FLOORS.items() if name not in internal}
