"""Which implementation runs an op: `reference` (PyTorch), `cpp`, `triton` or `cuda`.

By default the fastest one that can run here and has a kernel for the op, device and dtype; what none of them takes runs
on the reference. `use(name)` or the variable FASTDIFF_BACKEND asks for one by name: what that one cannot do raises
BackendError rather than run elsewhere unnoticed.
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
SINGLE = frozenset({torch.float32})
KERNELS: dict[str, dict[str, frozenset[torch.dtype]]] = {
    "add_noise": {"cpp": FLOATS, "triton": FLOATS, "cuda": FLOATS},
    "q_sample": {"cpp": FLOATS, "triton": FLOATS, "cuda": FLOATS},
    "randn_like": {"cpp": FLOATS, "triton": FLOATS, "cuda": FLOATS},
    "group_norm_silu": {"cpp": FLOATS, "triton": FLOATS, "cuda": FLOATS},
    "group_norm_silu_backward": {"cpp": FLOATS, "triton": FLOATS, "cuda": FLOATS},
    "dynamic_bound": {"cpp": SINGLE, "triton": SINGLE, "cuda": SINGLE},
    "rescale_gain": {"cpp": FLOATS, "triton": FLOATS, "cuda": FLOATS},
    "solver_step": {"cpp": SINGLE, "triton": SINGLE, "cuda": SINGLE},
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
    """The backend that runs `op` on tensors of this device type and dtype. Raises BackendError if one was asked for
    by name that does not."""
    if torch.compiler.is_compiling():
        return _select(_asked, op, device_type, dtype)
    direct, asked = _direct, _asked
    name = _select(asked, op, device_type, dtype)
    if name == "cpp" and asked == _asked:
        direct.add(op)
    return name


def is_direct(op: str) -> bool:
    """Whether CPU tensors may go to the C++ kernel of `op`, which refuses the dtypes it does not have, without asking
    `select` again: for ops whose call must cost no more than a few microseconds. Never while compiling, where a guard
    on it would soon fail."""
    return not torch.compiler.is_compiling() and op in _direct


def explain(op: str, device_type: str, dtype: torch.dtype) -> str:
    """Why `select` answers what it answers, in one line."""
    name = select(op, device_type, dtype)
    if _asked:
        return f"{name}: asked for"
    passed = [refusal(op, candidate, device_type, dtype) for candidate in AUTOMATIC.get(device_type, ())]
    if name != "reference":
        return f"{name}: " + "; ".join(["the fastest that runs here", *filter(None, passed)])
    return "reference: " + ("; ".join(filter(None, passed)) or f"no kernels for device type {device_type!r}")


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
    reason = unavailable(name)
    return f"{name} cannot run here ({reason})" if reason else None


def _ask(name: str | None) -> None:
    global _asked, _direct
    _asked = name
    _direct = set()  # a new set: a selection under way in another thread adds to the old one


def _select(asked: str | None, op: str, device_type: str, dtype: torch.dtype) -> str:
    key = (asked, op, device_type, dtype)
    name = _chosen.get(key)
    if name is None:
        name = _asked_for(asked, op, device_type, dtype) if asked else _fastest(op, device_type, dtype)
        _chosen[key] = name
        log.debug("%s on %s %s runs on %s", op, device_type, dtype, name)
    return name


def _fastest(op: str, device_type: str, dtype: torch.dtype) -> str:
    names = AUTOMATIC.get(device_type, ())
    return next((name for name in names if refusal(op, name, device_type, dtype) is None), "reference")


def _asked_for(name: str, op: str, device_type: str, dtype: torch.dtype) -> str:
    require(name)
    reason = None if name == "reference" else refusal(op, name, device_type, dtype)
    if reason:
        raise BackendError(
            f"backend {name!r} was asked for, but {reason}: backend.use('auto') takes what there is"
        )
    return name


# torch.compile bakes the answer into its graph, and guards on what was asked, instead of tracing the search
_select._dynamo_marked_constant = True  # type: ignore[attr-defined]
