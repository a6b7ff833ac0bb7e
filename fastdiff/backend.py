"""Which implementation runs an op: `reference` (PyTorch), `cpp`, `triton` or `cuda`.

By default the fastest one that can run here and has a kernel for the op, device and dtype. `use(name)` or the variable
FASTDIFF_BACKEND asks for one by name and raises where it cannot run. What the chosen backend has no kernel for (an op,
a dtype) runs on the reference.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from types import TracebackType

import torch

from fastdiff import native
from fastdiff.errors import BackendError

log = logging.getLogger(__name__)

FLOATS = frozenset({torch.float32, torch.float16, torch.bfloat16})
KERNELS: dict[str, dict[str, frozenset[torch.dtype]]] = {
    "add_noise": {"cpp": FLOATS, "triton": FLOATS, "cuda": FLOATS},
    "group_norm_silu": {"cpp": FLOATS},
    "solver_step": {"cpp": frozenset({torch.float32})},
}
"""op -> backend -> the dtypes it has a kernel for. The reference takes everything."""

NAMES = ("reference", "cpp", "triton", "cuda")
AUTOMATIC: dict[str, tuple[str, ...]] = {"cpu": ("cpp",), "cuda": ("cuda", "triton")}
"""device type -> the backends to try, fastest first."""

_from_environment = os.environ.get("FASTDIFF_BACKEND") or "auto"
_asked: str | None = None if _from_environment == "auto" else _from_environment
_chosen: dict[tuple[str | None, str, str, torch.dtype], str] = {}
_direct: set[str] = set()


class use:
    """Runs every op on backend `name` from now on ("auto": choose again), for the whole process; as a context manager,
    until the block ends. Raises ValueError for an unknown name, BackendError where that backend cannot run."""

    def __init__(self, name: str) -> None:
        if name != "auto":
            require(name)
        self.before = _asked
        _ask(None if name == "auto" else name)

    def __enter__(self) -> use:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _ask(self.before)


def current() -> str:
    """The backend asked for, or "auto"."""
    return _asked or "auto"


def select(op: str, device_type: str, dtype: torch.dtype) -> str:
    """The backend that runs `op` on tensors of this device type and dtype."""
    return _select(_asked, op, device_type, dtype)


def is_direct(op: str) -> bool:
    """Whether float32 CPU tensors may go to the C++ kernel of `op` without asking `select` again: for ops whose
    call must cost no more than a few microseconds."""
    return op in _direct


def explain(op: str, device_type: str, dtype: torch.dtype) -> str:
    """Why `select` answers what it answers, in one line."""
    name = select(op, device_type, dtype)
    if name != "reference":
        return f"{name}: " + ("asked for" if _asked else "the fastest that runs here")
    if _asked == "reference":
        return "reference: asked for"
    reasons = [refusal(op, candidate, device_type, dtype) for candidate in _candidates(_asked, device_type)]
    return "reference: " + ("; ".join(filter(None, reasons)) or f"no kernels for device type {device_type!r}")


def require(name: str) -> None:
    """Raises unless backend `name` is known (ValueError) and can run here (BackendError)."""
    if name not in NAMES:
        raise ValueError(f"unknown backend {name!r}: choose one of {', '.join(NAMES)}, or auto")
    reason = unavailable(name)
    if reason:
        raise BackendError(f"backend {name!r} cannot run here: {reason}")


def unavailable(name: str) -> str | None:
    """Why backend `name` cannot run here, or None if it can."""
    if name == "cpp":
        return native.problem("cpu")
    if name == "cuda":
        return native.problem("cuda") if torch.cuda.is_available() else "torch sees no CUDA device"
    if name == "triton":
        if importlib.util.find_spec("triton") is None:
            return "triton is not installed: pip install triton"
        if not (torch.cuda.is_available() or interpreting()):
            return "torch sees no CUDA device (TRITON_INTERPRET=1 runs the kernels on the CPU, slowly)"
    return None


def interpreting() -> bool:
    """Whether Triton kernels run in its interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def serves(name: str, device_type: str) -> bool:
    """Whether backend `name` works on tensors of this device type."""
    if name == "triton" and interpreting():
        return device_type in ("cpu", "cuda")
    return device_type == ("cpu" if name == "cpp" else "cuda")


def refusal(op: str, name: str, device_type: str, dtype: torch.dtype) -> str | None:
    """Why backend `name` does not take this op, device type and dtype, or None if it does."""
    if dtype not in KERNELS[op].get(name, ()):
        return f"{name} has no {op} kernel for {str(dtype).removeprefix('torch.')}"
    if not serves(name, device_type):
        return f"{name} does not work on {device_type} tensors"
    return unavailable(name)


def _ask(name: str | None) -> None:
    global _asked, _direct
    _asked = name
    _direct = set()  # a new set: a selection under way in another thread adds to the old one


def _candidates(asked: str | None, device_type: str) -> tuple[str, ...]:
    return (asked,) if asked else AUTOMATIC.get(device_type, ())


def _select(asked: str | None, op: str, device_type: str, dtype: torch.dtype) -> str:
    direct, key = _direct, (asked, op, device_type, dtype)
    name = _chosen.get(key)
    if name is None:
        if asked is not None:
            require(asked)
        names = (n for n in _candidates(asked, device_type) if n != "reference")
        name = next((n for n in names if refusal(op, n, device_type, dtype) is None), "reference")
        _chosen[key] = name
        log.debug("%s on %s %s runs on %s", op, device_type, dtype, name)
    if name == "cpp" and dtype == torch.float32 and asked == _asked:
        direct.add(op)
    return name


# torch.compile bakes the answer into its graph, and guards on what was asked, instead of tracing the search
_select._dynamo_marked_constant = True  # type: ignore[attr-defined]
