"""Trainings that are killed with SIGKILL: run as a program by test_training_resume.py, `training_killed.py DATA OUT`.

Each runs in a fork of this process, into OUT/CASE: "outside": another process kills it at some moment between two steps
or within one; "writing": it dies when half of its third state is written; "between": when its third model is written
and the state that belongs to it is not.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from fastdiff.training import state, train, trainer
from training_cases import change

CONFIG = change(steps=12, save_every=2, cooldown=4, precision="bfloat16")


def die(*given: object, **named: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def outside(data: Path, out: Path) -> None:
    """Slow enough to be caught half-way."""
    train(CONFIG, data, out, on_step=lambda p: time.sleep(0.05))


def writing(data: Path, out: Path) -> None:
    written, write_atomic = 0, state.write_atomic

    def half(path: Path, write: Any, **options: Any) -> None:
        nonlocal written
        written += 1

        def torn(file: Any) -> None:
            if written < 3:
                return write(file)
            file.write(b"half of a state")
            file.flush()
            die()

        write_atomic(path, torn, **options)

    state.write_atomic = half
    train(CONFIG, data, out)


def between(data: Path, out: Path) -> None:
    save_state, saved = trainer.save_state, 0

    def third(*given: Any, **named: Any) -> None:
        nonlocal saved
        saved += 1
        (die if saved == 3 else save_state)(*given, **named)

    trainer.save_state = third
    train(CONFIG, data, out)


def main() -> None:
    data, out = Path(sys.argv[1]), Path(sys.argv[2])
    for case in (outside, writing, between):
        child = os.fork()
        if not child:
            case(data, out / case.__name__)
            os._exit(0)
        while case is outside and not (out / case.__name__ / "state.safetensors").exists():
            time.sleep(0.01)
        if case is outside:
            time.sleep(0.12)
            os.kill(child, signal.SIGKILL)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL, case.__name__


if __name__ == "__main__":
    main()
