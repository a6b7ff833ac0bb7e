"""Several processes that train one network: each takes its share of a step's pictures, gradients are averaged.

The processes are started by `fastdiff train --processes N`, `accelerate launch` or `torchrun`; accelerate finds the
others. Every process draws the whole step's random numbers and takes its part of them, so that N processes compute what
one would with N times the batch, but for rounding.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

PATIENCE = 30.0
"""Seconds that processes have to end when another has failed, before they are killed."""


@dataclass(frozen=True)
class Processes:
    """This process's place: rank of count, and the device it computes on."""

    device: torch.device
    rank: int = 0
    count: int = 1

    @property
    def writes(self) -> bool:
        """Whether this is the one that writes files and shows progress."""
        return self.rank == 0

    def part(self, total: int) -> slice:
        """This process's share of `total` pictures, a multiple of `count`."""
        each = total // self.count
        return slice(self.rank * each, (self.rank + 1) * each)

    def mean_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each float32 tensor by its mean over the processes."""
        if self.count == 1:
            return
        from accelerate.utils import reduce

        flat = reduce(torch.cat([tensor.reshape(-1) for tensor in tensors]), reduction="mean")
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
            tensor.copy_(part.view_as(tensor))

    def any(self, here: bool) -> bool:
        """Whether it is true in any process."""
        told = torch.tensor([float(here)], device=self.device)
        self.mean_([told])
        return bool(told.item() > 0)

    def leave(self) -> None:
        """Close the connection to the others."""
        if self.count > 1:
            torch.distributed.destroy_process_group()


def join(device: str) -> Processes:
    """The processes of the launcher that started this one; alone without one.

    Raises ModuleNotFoundError where accelerate is missing.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return Processes(torch.device(device))
    try:
        from accelerate import PartialState
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "training in several processes needs accelerate: pip install 'fastdiff[train]'"
        ) from None
    state = PartialState(cpu=torch.device(device).type == "cpu")
    return Processes(torch.device(state.device), state.process_index, state.num_processes)


def launch(count: int, arguments: Sequence[str]) -> int:
    """Run `python -m fastdiff ARGUMENTS` in `count` processes on this machine; the exit code of the first that failed.

    CPU threads are divided among them. An interrupt is passed on to them, once, and they are waited for. When one
    fails, the others, which would wait for it for ever, are ended.
    """
    if not 2 <= count <= 1024:
        raise ValueError(f"--processes must be an integer from 2 to 1024, got {count}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    threads = str(max(1, (os.cpu_count() or 1) // count))
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    started: list[subprocess.Popen[bytes]] = []
    with _passed_on(started):
        for rank in range(count):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(count)}
            environment = {"OMP_NUM_THREADS": threads, **os.environ, **shared, **place}
            # A session of its own: a Ctrl-C then reaches this process alone, which passes it on.
            command = [sys.executable, "-m", "fastdiff", *arguments]
            started.append(subprocess.Popen(command, env=environment, start_new_session=True))
        return _wait(started)


@contextlib.contextmanager
def _passed_on(started: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Interrupts and requests to end go to the processes; they save and end."""

    def tell(number: int, frame: Any) -> None:
        for process in started:
            process.send_signal(number)

    before = {number: signal.signal(number, tell) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(started: Sequence[subprocess.Popen[bytes]]) -> int:
    running, code, deadline = list(started), 0, math.inf
    while running:
        time.sleep(0.05)
        if time.monotonic() > deadline:
            for process in running:
                process.kill()
        for process in [p for p in running if p.poll() is not None]:
            running.remove(process)
            if process.returncode and not code:
                code = process.returncode if process.returncode > 0 else 128 - process.returncode
                deadline = time.monotonic() + PATIENCE
                for other in running:
                    other.terminate()
    return code
