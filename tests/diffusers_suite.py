"""diffusers' own scheduler tests with our classes put in place of theirs. Not collected by pytest: run it by hand.

    git clone --depth 1 https://github.com/huggingface/diffusers
    python tests/diffusers_suite.py diffusers

The tests (tests/schedulers of that checkout, whose version should be near the installed one's) run twice: with plain
diffusers, which tells what fails anyhow, then with every class of fastdiff.diffusers.CLASSES in place of diffusers'
class of that name. What only fails with ours is a failure, and the exit status is then 1. Not applicable is what was
skipped and the tests of a class that has no counterpart. Arguments after the folder go to pytest (`-k euler`, `-x`).
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

MODE, RESULTS = "FASTDIFF_SUITE_MODE", "FASTDIFF_SUITE_RESULTS"
Results = dict[str, dict[str, Any]]

_found: Results = {}


def put_in_place() -> set[str]:
    """Every class of ours under diffusers' name, wherever `import` may look for it; the names."""
    import diffusers
    import diffusers.schedulers

    from fastdiff.diffusers import CLASSES

    for name, cls in CLASSES.items():
        setattr(diffusers, name, cls)
        setattr(diffusers.schedulers, name, cls)
    return set(CLASSES)


def pytest_configure(config: pytest.Config) -> None:
    """As a plugin: the classes are in place before a test is imported; the installed diffusers is the one tested."""
    import diffusers  # before the checkout's conftest puts its own sources first on the path

    assert diffusers.__version__
    if os.environ[MODE] == "ours":
        put_in_place()


def _of_ours(item: Any) -> bool:
    """Whether a test's class tests at least one of our classes, or names none."""
    from fastdiff.diffusers import CLASSES

    classes = getattr(getattr(item, "cls", None), "scheduler_classes", None)
    return not classes or any(cls in CLASSES.values() for cls in classes)


def pytest_collection_modifyitems(items: list[Any]) -> None:
    if os.environ[MODE] == "ours":
        for item in items:
            if not _of_ours(item):
                item.add_marker(pytest.mark.skip(reason="a class without a counterpart"))


def pytest_runtest_logreport(report: Any) -> None:
    """What each test came to, and why."""
    if report.when != "call" and report.outcome == "passed":
        return
    why = ""
    if report.outcome == "failed":
        crash = getattr(report.longrepr, "reprcrash", None)
        why = (crash.message if crash else str(report.longrepr)).strip().splitlines()[0][:200]
    elif report.outcome == "skipped":
        why = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
    _found[report.nodeid] = {"outcome": report.outcome, "why": why}


def pytest_sessionfinish() -> None:
    Path(os.environ[RESULTS]).write_text(json.dumps(_found))


def run(folder: Path, mode: str, more: list[str]) -> Results:
    """One run of the checkout's scheduler tests in its own process. mode: "theirs" or "ours"."""
    with tempfile.TemporaryDirectory() as scratch:
        results = Path(scratch, "results.json")
        env = {**os.environ, MODE: mode, RESULTS: str(results), "HF_HUB_OFFLINE": "1"}
        env["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            Path(__file__).stem,
            "-q",
            "--tb=short",
            "--no-header",
        ]
        subprocess.run(
            [*command, "-p", "no:cacheprovider", "tests/schedulers", *more],
            cwd=folder, env=env, stdout=subprocess.DEVNULL if not more else None, check=False,
        )  # fmt: skip
        if not results.exists():
            raise SystemExit(f"the tests in {folder} did not run: try pytest -p {Path(__file__).stem} there")
        found: Results = json.loads(results.read_text())
        return found


def compare(theirs: Results, ours: Results) -> tuple[str, int]:
    """The report, and how many tests fail only with ours."""
    kinds = collections.defaultdict(list)
    for test, result in ours.items():
        before = theirs.get(test, {"outcome": "missing", "why": ""})
        if result["outcome"] == "failed":
            both = before["outcome"] == "failed"
            kinds["fails with plain diffusers too" if both else "failed"].append((test, result["why"]))
        elif result["outcome"] == "skipped":
            kinds["not applicable"].append((test, result["why"]))
        else:
            kinds["passed"].append((test, ""))
    lines = [f"{kind}: {len(tests)}" for kind, tests in sorted(kinds.items())]
    for kind in ("failed", "fails with plain diffusers too"):
        lines += [f"{kind}: {test.split('/')[-1]}\n    {why}" for test, why in kinds[kind]]
    reasons = collections.Counter(re.sub(r"^Skipped: ", "", why) for _, why in kinds["not applicable"])
    lines += [f"not applicable: {count} x {why}" for why, count in reasons.most_common()]
    return "\n".join(lines), len(kinds["failed"])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkout", type=Path, help="a folder with a checkout of diffusers' repository")
    known, more = parser.parse_known_args()
    if not (known.checkout / "tests" / "schedulers").is_dir():
        raise SystemExit(f"{known.checkout} has no tests/schedulers: it should be a checkout of diffusers")
    report, failed = compare(*(run(known.checkout, mode, more) for mode in ("theirs", "ours")))
    print(report)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
