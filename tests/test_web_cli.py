"""fastdiff ui: it serves until Ctrl-C, and says in one line what keeps it from serving."""

from __future__ import annotations

import importlib.util
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="the page needs the extra 'ui'")
pytest.importorskip("uvicorn", reason="the page needs the extra 'ui'")

Command = Callable[..., tuple[int, str, str]]


def test_it_serves_until_ctrl_c(tiny: Path) -> None:
    command = [sys.executable, "-m", "fastdiff", "ui", "--port", "0", "--model", str(tiny)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        try:
            address = re.search(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())
            assert address
            with urllib.request.urlopen(address[0], timeout=20) as answer:
                assert b"<title>fastdiff</title>" in answer.read()
        finally:
            process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 0 and out.endswith("stopped\n") and err == ""


def test_a_port_that_is_taken(fastdiff: Command) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = fastdiff(f"ui --port {port}")
    assert (
        code == 1 and err.count("\n") == 1 and f"cannot listen on 127.0.0.1:{port}" in err and "--port" in err
    )


@pytest.mark.parametrize(
    "line, said",
    [("--port 99999", "--port must be"), ("--port -1", "--port must be"), ("--max-seconds 0", "--max-seconds must be"),
     ("--max-seconds nan", "--max-seconds must be"), ("--token short", "--token must be"),
     ("--host nowhere.invalid", "cannot listen"), ("--model nothing.safetensors", "does not exist"),
     ("--host ''", "--host must"), ("--allow-host ''", "--allow-host must")],
)  # fmt: skip
def test_what_cannot_be_served(fastdiff: Command, line: str, said: str) -> None:
    code, out, err = fastdiff(f"ui {line}")
    assert code == 1 and out == "" and err.count("\n") == 1 and said in err


def test_the_extra_is_named_where_it_is_missing(fastdiff: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else there(name))
    code, _, err = fastdiff("ui")
    assert code == 1 and "pip install 'fastdiff[ui]'" in err
