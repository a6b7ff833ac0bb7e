"""group_norm_silu inside PyTorch: opcheck, autocast, compile, export, vmap, torch.func, memory; and its modules."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.backends.common import aot_autograd

from fastdiff import backend, ops
from fastdiff.nn import AddGroupNormSiLU, GroupNormSiLU
from group_norm_cases import OPTIONS, composition, draw, exact, gradients, inputs, through_ops

OVERLOADS = ["default", "triton"]
BOTH_LAYOUTS = pytest.mark.parametrize("layout", ["contiguous", "channels_last"])


@BOTH_LAYOUTS
@pytest.mark.parametrize("overload", OVERLOADS)
@pytest.mark.parametrize("options", ["plain", "all-gelu"])
def test_opcheck(overload, layout, options, generator):
    op = getattr(torch.ops.fastdiff.group_norm_silu, overload)
    case = inputs((2, 8, 4, 3), 4, torch.float32, generator, options=options, layout=layout)
    torch.library.opcheck(op, case.requiring_grad().arguments())
    torch.library.opcheck(op, case.to(torch.bfloat16).arguments())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", OPTIONS)
def test_what_training_keeps(options, dtype, generator):
    case = inputs((2, 16, 24, 24), 4, dtype, generator, options=options)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        summed, y = through_ops(case.requiring_grad())
    small = sum(t.nbytes for t in case.tensors().values() if t.numel() < 1000) + 2 * 2 * 4 * 4
    assert sum(t.nbytes for t in kept) == case.x.nbytes + small  # x or the sum, the vectors, mean and rstd
    assert any(t.data_ptr() == summed.data_ptr() for t in kept)
    assert not any(t.data_ptr() == y.data_ptr() for t in kept)


def test_the_gradient_s_kernel_is_called(generator):
    case = inputs((2, 8, 4, 4), 4, torch.float32, generator, options="all").requiring_grad()
    _, y = through_ops(case)
    with torch.profiler.profile() as profile:
        y.sum().backward()
    assert "fastdiff::group_norm_silu_backward" in {event.key for event in profile.key_averages()}


def test_autocast(generator):
    x = draw((2, 8, 6, 6), torch.float32, generator)
    module, convolution, linear = GroupNormSiLU(4, 8), torch.nn.Conv2d(8, 8, 1), torch.nn.Linear(4, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half, embedding = convolution(x), linear(torch.ones(2, 4))
        assert half.dtype == embedding.dtype == torch.bfloat16
        assert module(half, add=embedding).dtype == torch.bfloat16
        y = module(x, add=embedding)  # half precision beside a single precision image
        assert y.dtype == torch.float32
        y.sum().backward()
    assert linear.weight.grad is not None and convolution.weight.grad is None
    with pytest.raises(TypeError, match="add is bfloat16"):
        module(x, add=embedding)


@BOTH_LAYOUTS
@pytest.mark.parametrize("name", ["auto", "reference"])
def test_compile(name, layout, generator):
    graphs = []

    def compiler(graph, _):
        graphs.append(graph.code)
        return graph

    case = inputs((2, 8, 6, 6), 4, torch.float32, generator, options="all", layout=layout)
    grads = (draw((2, 8, 6, 6), torch.float32, generator), draw((2, 8, 6, 6), torch.float32, generator))
    eager, compiled = case.requiring_grad(), case.requiring_grad()
    with backend.use(name):
        expected = gradients(through_ops(eager), eager, grads)
        function = torch.compile(through_ops, fullgraph=True, backend=aot_autograd(fw_compiler=compiler))
        outputs = function(compiled)
        torch.testing.assert_close(outputs, through_ops(case))
        torch.testing.assert_close(gradients(outputs, compiled, grads), expected)
    if name == "auto":
        assert "group_norm_silu.default" in graphs[0] and "group_norm_silu_backward.default" in graphs[1]


@pytest.mark.parametrize("layout", ["channels_last", "shuffled"])
def test_compile_with_sizes_unknown(layout, generator):
    torch.compiler.reset()
    function = torch.compile(through_ops, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in ((2, 8, 6, 6), (3, 8, 10, 4)):
        case = inputs(shape, 4, torch.float32, generator, options="all", layout=layout)
        torch.testing.assert_close(function(case), through_ops(case))


def test_export(generator):
    x, add = draw((2, 8, 6, 6), torch.float32, generator), draw((2, 8), torch.float32, generator)
    module = GroupNormSiLU(4, 8, activation="gelu")
    exported = torch.export.export(module, (x,), {"add": add})
    torch.testing.assert_close(exported.module()(x, add=add), module(x, add=add))
    both = AddGroupNormSiLU(4, 8)
    exported = torch.export.export(both, (x, x))
    torch.testing.assert_close(exported.module()(x, x), both(x, x))


@BOTH_LAYOUTS
def test_vmap(layout, generator):
    case = inputs((2, 8, 6, 6), 4, torch.float32, generator, options="all", layout=layout)

    def function(x, scale):
        return through_ops(case._replace(x=x, scale=scale))[1]

    x, scale = torch.stack([case.x, 2 * case.x]), torch.stack([case.scale, -case.scale])
    expected = torch.stack([function(*pair) for pair in zip(x, scale, strict=True)])
    torch.testing.assert_close(torch.vmap(function)(x, scale), expected)
    shared = torch.vmap(function, in_dims=(None, 0))(case.x, scale)
    torch.testing.assert_close(shared[1], function(case.x, scale[1]))


def test_function_transforms(generator):
    case = inputs((2, 8, 4, 4), 4, torch.float32, generator, options="all")

    def loss(x, weight, run=through_ops):
        return run(case._replace(x=x, weight=weight))[1].square().sum()

    def truth(x, weight):
        return loss(x, weight, composition)

    point = (case.x, case.weight)
    near = {"rtol": 1e-4, "atol": 1e-4}
    for transform in (
        lambda f: torch.func.grad(f, argnums=(0, 1))(*point),
        lambda f: torch.vmap(torch.func.grad(f), in_dims=(0, None))(torch.stack([case.x] * 2), case.weight),
        lambda f: torch.func.jvp(f, point, point),
        lambda f: torch.func.jacrev(torch.func.grad(f, argnums=1), argnums=1)(*point),
    ):
        torch.testing.assert_close(transform(loss), transform(truth), **near)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(case.x, torch.ones_like(case.x))
        slopes = [torch.autograd.forward_ad.unpack_dual(f(dual, case.weight)).tangent for f in (loss, truth)]
    torch.testing.assert_close(*slopes, **near)


def test_inference_mode(generator):
    case = inputs((2, 8, 4, 4), 4, torch.float32, generator, options="all")
    expected = through_ops(case)
    with torch.inference_mode():
        torch.testing.assert_close(through_ops(case), expected)
    with torch.no_grad():
        assert not through_ops(case.requiring_grad())[1].requires_grad


def test_modules(generator):
    case = inputs((2, 8, 6, 6), 4, torch.float32, generator, options="all-gelu")
    vectors = {"add": case.add, "scale": case.scale, "shift": case.shift}
    plain = torch.nn.GroupNorm(4, 8)
    plain.weight.data, plain.bias.data = case.weight, case.bias
    fused = AddGroupNormSiLU.from_group_norm(plain, activation="gelu")
    assert fused.weight is plain.weight and "activation=gelu" in repr(fused)
    torch.testing.assert_close(fused(case.x, case.residual, **vectors), through_ops(case))
    loaded = GroupNormSiLU(4, 8)
    loaded.load_state_dict(plain.state_dict())
    torch.testing.assert_close(loaded(case.x), F.silu(plain(case.x)))
    bare = GroupNormSiLU(4, 8, affine=False, activation="none")
    torch.testing.assert_close(bare(case.x), F.group_norm(case.x, 4))
    alone = case._replace(residual=None, activation="silu")
    torch.testing.assert_close(loaded(case.x, **vectors).double(), exact(alone)[1], rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="activation is 'relu'"):
        GroupNormSiLU(4, 8, activation="relu")
    with pytest.raises(ValueError, match="scale has shape"):
        ops.group_norm_silu(case.x, 4, scale=case.weight)
