"""Our schedulers' step() on all kinds of tensors, dims, layouts, dtypes, gradients; and what it dispatches."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from diffusers_cases import NAMES, Case, default, draw, ours, theirs  # noqa: E402
from diffusers_loops import (  # noqa: E402
    advance,
    build,
    exact_scheduler,
    exactly,
    generators,
    loop,
    network,
    recording,
    start,
)
from test_diffusers_parity import AVERAGE, distance  # noqa: E402
from test_diffusers_state import assert_near  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
every = pytest.mark.parametrize("name", NAMES)

SHAPES = ((2, 3, 8), (1, 4, 5, 7), (2, 2, 3, 4, 5))
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2),
    "sliced": lambda x: torch.cat([x, x], -1)[..., : x.shape[-1]],
    "odd offset": lambda x: torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape),
    "expanded": lambda x: x[:1].expand_as(x),
}


def loops(
    case: Case, dtype: torch.dtype = torch.float32, shape_of: Callable[[Tensor], Tensor] | None = None
) -> list[Any]:
    """(ours, theirs): what the loops of a case come to, or how they fail, from a start in another layout."""
    results: list[Any] = []
    for cls in (ours(case.scheduler), theirs(case.scheduler)):
        try:
            scheduler = build(cls, case)
            x = start(build(cls, case), case, dtype)[0]
            results.append(
                loop(scheduler, case, dtype, generator=generators(case), x=shape_of(x) if shape_of else x)
            )
        except Exception as failure:
            results.append(failure)
    return results


def assert_alike(results: list[Any], tolerance: float = 1e-5) -> None:
    """Near, unless diffusers fails."""
    got, expected = results
    if isinstance(expected, Exception):
        pytest.skip(f"diffusers: {expected!r}"[:100])
    assert not isinstance(got, Exception), repr(got)
    assert_near(got, expected, tolerance)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@every
def test_dims(name: str, shape: tuple[int, ...]) -> None:
    assert_alike(loops(default(name, 4, shape=shape)))


@pytest.mark.parametrize("layout", LAYOUTS)
@every
def test_layouts(name: str, layout: str) -> None:
    case = default(name, 4) if name == "HeliosDMDScheduler" else default(name, 4, shape=(2, 3, 4, 5))
    if name == "HeliosDMDScheduler" and layout == "channels last":
        pytest.skip("of five dims")
    assert_alike(loops(case, shape_of=LAYOUTS[layout]))


@every
def test_an_empty_batch(name: str) -> None:
    case = default(name, 4)
    got, expected = loops(default(name, 4, shape=(0, *case.shape[1:])))
    if not isinstance(expected, Exception):
        assert not isinstance(got, Exception), repr(got)
        assert [v.shape for v in got] == [v.shape for v in expected]


@every
def test_float64(name: str) -> None:
    assert_alike(loops(default(name, 6), torch.float64), 1e-6)


@pytest.mark.parametrize("given", [torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("sample", [torch.float32, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["DDIMScheduler", "DDIMParallelScheduler"])
def test_noise_of_the_callers(name: str, sample: torch.dtype, rows: int, given: torch.dtype) -> None:
    """variance_noise of one image broadcasts to the batch; of a wider dtype, it sets the result's."""
    g = torch.Generator().manual_seed(0)
    x, output = torch.randn(2, 2, 3, 4, 4, dtype=torch.float64, generator=g).to(sample)
    noise = torch.randn(rows, 3, 4, 4, dtype=torch.float64, generator=g).to(given)
    results = []
    for cls in (ours(name), theirs(name)):
        scheduler, z = build(cls, default(name, 4)), x
        for t in scheduler.timesteps[:3]:
            z = scheduler.step(output.to(z.dtype), t, z, eta=1.0, variance_noise=noise, return_dict=False)[0]
        results.append([z])
    assert_near(*results, 1e-2 if torch.float16 in (sample, given) else 1e-5)


PAIRS = [(torch.float16, torch.float32), (torch.float32, torch.float16), (torch.bfloat16, torch.float32)]
FEW = 3
"""Steps of the loops whose gradients are compared."""


def mixed(scheduler: Any, case: Case, x: Tensor, of: tuple[torch.dtype, torch.dtype]) -> list[Tensor]:
    """One step from x, whose network sees the sample and answers in dtypes of their own."""
    model, timesteps = network(case), start(scheduler, case, of[0])[1]

    def seeing(x: Tensor, t: float) -> Tensor:
        made = model(x.to(of[0]), t).to(of[1])
        return made.double() if x.dtype == torch.float64 else made

    return images(advance(scheduler, case, seeing, x, timesteps, 0, [x], generators(case)))


def gradients(scheduler: Any, case: Case, x: Tensor, _: Any) -> list[Tensor]:
    """Of a loss of a few steps from x, with respect to x."""
    x, timesteps = x.clone().requires_grad_(), start(scheduler, case, torch.float32)[1]
    last, generator = [x], generators(case)
    for i in range(min(FEW, len(timesteps))):
        last = advance(scheduler, case, network(case), last[0], timesteps, i, last, generator)
    last[0].square().sum().backward()
    assert x.grad is not None
    return [x.grad]


def images(values: list[Any]) -> list[Tensor]:
    return [value for value in values if isinstance(value, Tensor)]


def assert_as_exact(
    what: Callable[..., list[Tensor]], case: Case, of: tuple[torch.dtype, torch.dtype]
) -> None:
    """Ours is no further from float64 than diffusers, but for roundings, or within 1e-5; of the same dtypes."""
    cls, drawn = theirs(case.scheduler), list[Tensor]()
    x = start(build(cls, case), case, of[0])[0]
    try:
        with recording(cls, drawn):
            expected = what(build(cls, case), case, x, of)
    except Exception as failure:
        pytest.skip(f"diffusers: {failure!r}"[:100])
    got = what(build(ours(case.scheduler), case), case, x, of)
    scheduler = exact_scheduler(case)
    with exactly(cls, drawn):
        exact = what(scheduler, case, x.double(), of)
    assert [(v.dtype, v.shape) for v in got] == [(v.dtype, v.shape) for v in expected]
    assert distance(got, exact) <= max(1e-5, AVERAGE[torch.float32] * distance(expected, exact))


@pytest.mark.parametrize("sample, output", PAIRS, ids=str)
@every
def test_mixed_dtypes(name: str, sample: torch.dtype, output: torch.dtype) -> None:
    assert_as_exact(mixed, default(name), (sample, output))


@every
def test_gradients_flow(name: str) -> None:
    assert_as_exact(gradients, default(name, 4), (torch.float32, torch.float32))


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
@every
def test_without_autograd(name: str, mode: Callable[[], Any]) -> None:
    with mode():
        assert_alike(loops(default(name, 4)))


# --- What a step dispatches ---

DRAWS = ("randn", "normal_", "bernoulli", "random_", "cat")  # cat: of a draw for each generator
NO_WORK = (
    "empty", "detach", "alias", "view", "expand", "as_strided", "select", "slice", "unsqueeze", "squeeze", "reshape",
    "permute", "transpose", "lift_fresh", "split", "sym_", "prim",
)  # fmt: skip
SYNCHRONISING = (
    "_local_scalar_dense",
    "nonzero",
    "is_nonzero",
    "equal",
    "masked_select",
    "_linalg_check_errors",
)


class Counting(TorchDispatchMode):
    """Counts work on tensors as large as an image (draws of noise apart), and host synchronisations."""

    def __init__(self, numel: int) -> None:
        super().__init__()
        self.numel = numel
        self.kernels, self.syncs = collections.Counter[str](), collections.Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in SYNCHRONISING:
            self.syncs[name] += 1
        leaves = torch.utils._pytree.tree_leaves((args, kwargs, out))
        large = any(isinstance(v, Tensor) and v.numel() >= self.numel for v in leaves)
        if large and not any(part in name for part in DRAWS) and not name.startswith(NO_WORK):
            self.kernels[name] += 1
        return out


@contextlib.contextmanager
def counted(scheduler: Any, numel: int) -> Iterator[list[Counting]]:
    """The steps of a scheduler are counted, each by itself."""
    plain, counts = scheduler.step, []

    def step(*args: Any, **more: Any) -> Any:
        with Counting(numel) as count:
            out = plain(*args, **more)
        counts.append(count)
        return out

    scheduler.step = step
    yield counts
    del scheduler.step


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
@every
def test_one_kernel_and_no_synchronisation(name: str, seed: int) -> None:
    if "Brownian" in inspect.getsource(theirs(name)):
        pytest.skip("its draws walk down a Brownian tree in hundreds of ops")
    case = dataclasses.replace(draw(name, seed), begin=0)
    try:
        scheduler = build(ours(name), case)
        loop(scheduler, case, generator=generators(case))  # plans are made once
    except Exception as refusal:
        pytest.skip(f"diffusers: {refusal!r}"[:100])
    scheduler = build(ours(name), case)
    if scheduler.fallback is not None:
        pytest.skip(scheduler.fallback)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    numel = torch.Size(case.shape).numel()
    with counted(scheduler, numel) as counts, contextlib.suppress(IndexError), torch.no_grad():
        loop(scheduler, case, generator=generators(case))
    if scheduler.fallback is not None:
        pytest.skip(scheduler.fallback)
    allowed = 2 if case.config.get("thresholding") else 1
    allowed += 2 * (name == "RePaintScheduler")  # its mask
    # learned variance: the output's half laid out, the deviation of each pixel found and multiplied
    allowed += 4 * str(case.config.get("variance_type")).startswith("learned")
    # the noise's deviation at each pixel, made of the network's second half
    allowed += 5 * str(case.config.get("variance_type")).startswith("learned")
    assert counts
    for i, count in enumerate(counts):
        # the first finds its plan among those made, by the timesteps' copy on the CPU
        # (UnCLIP's every step does: each has the timestep after it among its arguments)
        assert not i or name == "UnCLIPScheduler" or not count.syncs, (i, count.syncs, str(case))
        assert count.kernels.total() <= allowed, (i, count.kernels, str(case))
