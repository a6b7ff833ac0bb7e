"""Trainings in two processes: run as a program by test_training_processes.py, `training_together.py DATA OUT`.

The processes are forks of one that has imported everything, as accelerate's notebook launcher makes them. Into
OUT/CASE:
"whole" is one run; "cut" is the same, one process of which is interrupted half-way, and then resumed.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import accelerate  # noqa: F401 (before the forks)

from fastdiff.training import Progress, train
from training_cases import change

CONFIG = change(steps=10, batch=4, cooldown=0)


def together(work: Callable[[], object]) -> None:
    """Call `work` in two processes that find each other; both must end well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(2):
        child = os.fork()
        if not child:
            os.environ.update(
                RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
                MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
            )  # fmt: skip
            work()
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]


def main() -> None:
    data, out = Path(sys.argv[1]), Path(sys.argv[2])

    def interrupted() -> None:
        def second_is_told(p: Progress) -> None:
            if p.step == 5 and os.environ["RANK"] == "1":
                os.kill(os.getpid(), signal.SIGINT)

        try:
            train(CONFIG, data, out / "cut", on_step=second_is_told)
        except KeyboardInterrupt:
            return
        os._exit(1)

    together(lambda: train(CONFIG, data, out / "whole"))
    together(interrupted)
    (out / "log-half.csv").write_bytes((out / "cut" / "log.csv").read_bytes())
    together(lambda: train(CONFIG, data, out / "cut", resume=True))


if __name__ == "__main__":
    main()
