"""The README keeps its word: its Python runs, its commands exist, its table of samplers is what the plans do."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fastdiff import schedules
from fastdiff.cli import build_parser
from fastdiff.plan import Plan
from fastdiff.samplers import SAMPLERS

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
ADAPTIVE = "dpm_adaptive"  # its own runner: it has no fixed number of calls


def table() -> dict[str, list[str]]:
    """name -> the other cells of the README's table of samplers."""
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", README, flags=re.MULTILINE)
    return {name: [cell.strip() for cell in cells.split("|")] for name, cells in rows}


def blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.parametrize("block", blocks(README), ids=lambda block: block.splitlines()[0])
def test_python_blocks_run_as_they_stand(block: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_every_sampler_is_listed_and_no_other() -> None:
    assert set(table()) == {*SAMPLERS, ADAPTIVE}


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_table_says_what_the_plan_does(name: str) -> None:
    _, calls, noise, source = table()[name]
    steps = 60
    plan = Plan.build(SAMPLERS[name], schedules.cosine_betas().levels(steps), prediction="v")
    assert plan.stochastic == noise.startswith("yes"), f"{name}: noise"
    if calls.isdigit():
        # a last step to clean data may save a call, a multistep method may start with a few more
        assert abs(plan.calls / steps - int(calls)) < 0.2, f"{name}: {plan.calls / steps} calls a step"
    assert source


def test_commands_shown_are_accepted() -> None:
    lines = [line.split("#")[0] for line in README.splitlines() if line.startswith("    fastdiff ")]
    assert len(lines) >= 4
    for line in lines:
        assert build_parser().parse_args(shlex.split(line)[1:]).run


def test_files_named_exist() -> None:
    for target in re.findall(r"(?:\]\(|src=\")([\w./-]+)[)\"]", README + GUIDE):
        assert (ROOT / target).exists(), target
    for target in re.findall(r"^    make (\w+)", README, flags=re.MULTILINE):
        assert f"\n{target}:" in (ROOT / "Makefile").read_text()


def test_the_sampler_of_the_contributing_guide_is_ddim() -> None:
    """The example planner builds and has the weights of the library's own."""
    example = next(block for block in blocks(GUIDE) if "def ddim" in block)
    scope: dict[str, object] = {}
    exec(
        "from collections.abc import *\nfrom fastdiff.plan import Row\nfrom fastdiff.levels import Level\n"
        + example,
        scope,
    )
    levels = schedules.cosine_betas().levels(7)
    mine = Plan.build(scope["ddim"], levels)  # type: ignore[arg-type]
    assert mine.table == pytest.approx(Plan.build(SAMPLERS["ddim"], levels).table, abs=1e-12)
