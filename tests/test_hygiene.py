"""What the library never does: unpickle, print, reach for the network, work at import, leave rooms undocumented."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted([*(ROOT / "fastdiff").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")])
LIBRARY = [path for path in SOURCES if "cli" not in path.parts and path.name != "__main__.py"]
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}
NETWORK = {"socket", "http", "urllib", "requests", "httpx", "aiohttp", "ftplib", "smtplib", "huggingface_hub"}

each_source = pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(path: Path) -> set[str]:
    """The top-level names of everything imported, anywhere in the file."""
    names: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """(dotted name, call) for every call by name, such as ("torch.load", ...)."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def keyword(call: ast.Call, name: str) -> object:
    found = [k.value for k in call.keywords if k.arg == name]
    return found[0].value if found and isinstance(found[0], ast.Constant) else None


@each_source
def test_nothing_is_unpickled(path: Path) -> None:
    assert not imports(path) & PICKLES
    for name, call in calls(path):
        if name == "torch.load":
            assert keyword(call, "weights_only") is True, (
                f"{path.name}:{call.lineno}: torch.load without weights_only"
            )
        if name in ("np.load", "numpy.load"):
            assert keyword(call, "allow_pickle") is not True
        assert name not in ("eval", "exec", "os.system"), f"{path.name}:{call.lineno}: {name}"
        assert keyword(call, "shell") is not True, f"{path.name}:{call.lineno}: a shell"


@each_source
def test_no_network(path: Path) -> None:
    # The page's server listens, and processes that train together find a free port: neither reaches for anything.
    listens = path.parts[-2:] in (("web", "serve.py"), ("training", "processes.py"))
    assert not imports(path) & NETWORK - ({"socket"} if listens else set())


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_library_does_not_print(path: Path) -> None:
    assert not [
        call.lineno for name, call in calls(path) if name in ("print", "sys.stdout.write", "sys.exit")
    ]


@each_source
def test_every_room_says_what_it_is(path: Path) -> None:
    source = tree(path)
    assert ast.get_docstring(source) or not source.body, f"{path.name} has no docstring"
    assert len(path.read_text().splitlines()) <= 400, f"{path.name} is a large room: split it"


def test_no_star_imports_and_no_bare_except() -> None:
    for path in SOURCES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ImportFrom):
                assert all(alias.name != "*" for alias in node.names), f"{path}:{node.lineno}"
            if isinstance(node, ast.ExceptHandler):
                assert node.type is not None, f"{path}:{node.lineno}: except without a type"


def test_import_is_quiet_and_keeps_the_callers_state() -> None:
    """Importing prints nothing, draws no random number, sets no thread count and compiles nothing."""
    script = (
        "import torch, random, threading\n"
        "torch.manual_seed(0); random.seed(0)\n"
        "before = torch.get_rng_state().clone(), random.getstate(), torch.get_num_threads(), threading.active_count()\n"
        "import fastdiff\n"
        "after = torch.get_rng_state(), random.getstate(), torch.get_num_threads(), threading.active_count()\n"
        "assert torch.equal(before[0], after[0]) and before[1:] == after[1:], (before[1:], after[1:])\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
