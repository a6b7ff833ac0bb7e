"""The benchmarks: they run, check before they time, and draw; a GPU visit rehearsed on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from fastdiff.cli import main

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from timing import Case, Timed, interleaved  # noqa: E402


def test_nothing_is_timed_that_is_not_right():
    with pytest.raises(ValueError, match=r"noise: off by 2\.00e-02, more than 1e-03: nothing was timed"):
        Case("noise", {"ours": Timed(int)}, "ours", 0.02, 1e-3)
    with pytest.raises(ValueError, match="off by nan"):
        Case("noise", {"ours": Timed(int)}, "ours", float("nan"), 1e-3)


def test_functions_take_turns_and_units_share_the_time():
    calls = []
    functions = {name: Timed(lambda name=name: calls.append(name), units=2) for name in "ab"}
    spreads = interleaved(functions, seconds=0.0, least=15)
    assert calls == ["a", "b"] * 16  # once to warm up
    assert all(0 < s.p20 <= s.p50 <= s.p80 for s in spreads.values())


def test_the_command_runs_draws_and_keeps(tmp_path, capfd):
    out, plot = tmp_path / "cpu.json", tmp_path / "cpu.png"
    arguments = ["bench", "--only", "noise", "--seconds", "0.05", "--out", str(out), "--plot", str(plot)]
    assert main(arguments) == 0
    data = json.loads(out.read_text())
    assert {"processor", "torch", "commit", "command", "isa"} <= data.keys()
    assert all(row["error"] < 1e-5 and row["ratios_p50"]["eager"] > 0 for row in data["results"])
    with Image.open(plot) as image:
        assert image.format == "PNG" and image.width > 500
    assert "add_noise" in capfd.readouterr().out
    assert main(arguments) == 1  # what is there is kept
    assert "exists" in capfd.readouterr().err
    assert main(["bench", "--from", str(out), "--plot", str(plot), "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--from", "none.json"], "--plot FILE.png"),
        (["--from", __file__, "--plot", "x.png"], "holds no benchmark results"),
        (["--seconds", "0"], "--seconds must lie between"),
        (["gpu"], "--out FOLDER"),
    ],
)
def test_bad_input_is_one_line(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *arguments]) == 1
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_a_gpu_visit_rehearsed(tmp_path):
    """Each part writes its results and the summary, with no case that failed."""
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--rehearse", "--out", str(tmp_path)]
    done = subprocess.run(
        [*command, "--only", "build", "kernels", "models"], capture_output=True, text=True, timeout=300
    )
    logs = "\n".join(path.read_text()[-2000:] for path in tmp_path.glob("*.log"))
    assert done.returncode == 0, done.stdout + done.stderr + logs
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert {name: part["exit_code"] for name, part in summary["parts"].items()} == {
        "build": 0,
        "kernels": 0,
        "models": 0,
    }
    for name in ("kernels", "models"):
        table = json.loads((tmp_path / f"{name}.json").read_text())
        assert table["problems"] == {} and table["results"]


def test_a_part_that_hangs_loses_only_itself(tmp_path):
    import gpu

    late = gpu.run(
        gpu.Part("sleep", ("-c", "print('begun', flush=True); import time; time.sleep(60)"), 1), tmp_path
    )
    assert late["exit_code"] == 124 and 1 <= late["seconds"] < 20
    assert (tmp_path / "sleep.log").read_text().startswith("begun\n")
    slow = "import time\ntry:\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    print('so far', flush=True)"
    assert gpu.run(gpu.Part("told", ("-c", slow), 1), tmp_path)["exit_code"] == 124
    assert (tmp_path / "told.log").read_text() == "so far\n"
    assert gpu.run(gpu.Part("crash", ("-c", "import os; os.abort()"), 20), tmp_path)["exit_code"] == -6


def test_a_visit_takes_less_than_nine_minutes(tmp_path):
    import gpu

    assert sum(part.limit for part in gpu.parts(tmp_path, rehearse=False)) < 9 * 60
