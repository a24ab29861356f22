"""The linear projection."""

import io
import itertools

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F

from subquad import functional, reference
from tests import util

SIZES = [(), (0,), (1,), (3,), (4,), (67,), (2, 33), (2, 0), (2, 3, 5)]
WIDTHS = [(1, 1), (7, 3), (16, 48), (64, 1), (33, 65)]


def tensors(sizes, inputs, outputs, dtype, device="cpu", bias=True):
    shapes = {"x": (*sizes, inputs), "weight": (outputs, inputs), "bias": (outputs,)}
    if not bias:
        del shapes["bias"]
    return util.random_tensors(shapes, dtype, device)


def results(op, arguments, grad):
    """Output and gradients, by name."""
    leaves = {k: v.detach().requires_grad_() for k, v in arguments.items()}
    output = op(**leaves)
    grads = torch.autograd.grad(output, list(leaves.values()), grad)
    named = {f"grad_{k}": g for k, g in zip(leaves, grads, strict=True)}
    return {"output": output.detach(), **named}


def random_grad(arguments):
    shape = {"grad": (*arguments["x"].shape[:-1], len(arguments["weight"]))}
    x = arguments["x"]
    return util.random_tensors(shape, x.dtype, x.device, seed=1)["grad"]


def linear(x, weight, bias=None):
    return F.linear(x, weight, bias)


def forced(onednn):
    """The two halves of the operator with one library, as one function."""

    def run(arguments, grad):
        x, weight = arguments["x"], arguments["weight"]
        output = torch.ops.subquad._projection_forward(
            x, weight, arguments.get("bias"), onednn
        )
        grads = torch.ops.subquad._projection_backward(
            grad, x, weight, [True, True, "bias" in arguments], onednn
        )
        named = {f"grad_{k}": g for k, g in zip(arguments, grads, strict=False)}
        return {"output": output, **named}

    return run


needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN"
)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "plain"])
@pytest.mark.parametrize("widths", WIDTHS, ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("dtype", util.DTYPES, ids=str)
def test_parity(dtype, sizes, widths, bias, device):
    arguments = tensors(sizes, *widths, dtype, device, bias)
    grad = random_grad(arguments)
    actual = results(functional.projection, arguments, grad)
    same = results(linear, arguments, grad)
    exact = results(
        reference.projection, {k: v.double() for k, v in arguments.items()}, grad
    )
    for name, result in actual.items():
        assert result.shape == same[name].shape, name
        assert result.dtype == dtype, name
    util.assert_as_exact_as(actual, same, exact, units=8)


@needs_onednn
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_both_libraries_agree(sizes, widths):
    arguments = tensors(sizes, *widths, torch.float32)
    grad = random_grad(arguments)
    exact = results(
        reference.projection, {k: v.double() for k, v in arguments.items()}, grad
    )
    for onednn in (False, True):
        actual = forced(onednn)(arguments, grad)
        for name, result in actual.items():
            torch.testing.assert_close(
                result.double(), exact[name], rtol=1e-5, atol=1e-5, msg=name
            )


def layouts():
    """Inputs of one shape in memory layouts that occur, and the odd ones."""
    x = torch.randn(6, 9, 8)
    yield "dense", x
    yield "transposed", torch.randn(9, 6, 8).transpose(0, 1)
    yield "rows of a wider tensor", torch.randn(6, 9, 24)[..., 8:16]
    yield "every second row", torch.randn(6, 18, 8)[:, ::2]
    yield "columns first", torch.randn(8, 6, 9).permute(1, 2, 0)
    yield "every second column", torch.randn(6, 9, 16)[..., ::2]
    yield "expanded", torch.randn(9, 8).expand(6, 9, 8)
    yield "one number", torch.randn(()).expand(6, 9, 8)


@pytest.mark.parametrize("onednn", [False, pytest.param(True, marks=needs_onednn)])
def test_strides(onednn):
    """Every operand in every layout, in any combination."""
    arguments = tensors((6, 9), 8, 8, torch.float32)
    weights = [arguments["weight"], torch.randn(8, 8).t(), torch.randn(8, 16)[:, ::2]]
    biases = [arguments["bias"], torch.randn(16)[::2], torch.randn(1).expand(8)]
    for (name, x), (_, grad) in itertools.product(layouts(), layouts()):
        for weight, bias in zip(weights, biases, strict=True):
            given = {"x": x, "weight": weight, "bias": bias}
            actual = forced(onednn)(given, grad)
            for key, expected in results(linear, given, grad).items():
                torch.testing.assert_close(
                    actual[key], expected, rtol=1e-5, atol=1e-5, msg=f"{name}: {key}"
                )


def test_output_lies_like_the_input(device):
    weight = torch.randn(4, 8, device=device)
    dense = torch.randn(3, 5, 8, device=device)
    assert functional.projection(dense, weight).is_contiguous()
    output = functional.projection(dense.transpose(0, 1), weight)
    assert output.transpose(0, 1).is_contiguous()


def test_transposed_input_is_not_copied():
    x = torch.randn(512, 4, 256).transpose(0, 1)
    weight = torch.randn(1, 256)
    functional.projection(x, weight)
    with torch.profiler.profile(profile_memory=True) as profile:
        functional.projection(x, weight)
    bytes_allocated = sum(max(e.cpu_memory_usage, 0) for e in profile.events())
    assert 0 < bytes_allocated < x.numel() * x.element_size() / 4


def test_gradcheck(device):
    arguments = tensors((2, 5), 3, 4, torch.float64, device)
    leaves = [x.requires_grad_() for x in arguments.values()]
    assert torch.autograd.gradcheck(functional.projection, leaves)
    assert torch.autograd.gradcheck(functional.projection, leaves[:2])


def test_expanded_gradient(device):
    arguments = tensors((2, 5), 3, 4, torch.float64, device)
    one = torch.ones((), dtype=torch.float64, device=device).expand(2, 5, 4)
    actual = results(functional.projection, arguments, one)
    expected = results(linear, arguments, one.contiguous())
    for name, result in actual.items():
        torch.testing.assert_close(result, expected[name], msg=name)


@pytest.mark.parametrize("needs", list(itertools.product([False, True], repeat=3)))
def test_only_the_gradients_that_are_needed(needs, device):
    values = tensors((2, 5), 3, 4, torch.float64, device).values()
    leaves = [x.requires_grad_(need) for x, need in zip(values, needs, strict=True)]
    output = functional.projection(*leaves)
    assert output.requires_grad == any(needs)
    if any(needs):
        output.sum().backward()
    assert [x.grad is not None for x in leaves] == list(needs)


def test_saves_only_what_backward_reads(device):
    x, weight, bias = tensors((2, 5), 3, 4, torch.float32, device).values()
    saved = []

    def pack(tensor):
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        functional.projection(x, weight, bias.requires_grad_())
        assert saved == []
        functional.projection(x.requires_grad_(), weight, bias)
        assert [tensor.shape for tensor in saved] == [weight.shape]


def test_double_backward_is_refused(device):
    x, weight, _ = tensors((2, 5), 3, 4, torch.float32, device).values()
    output = functional.projection(x.requires_grad_(), weight.requires_grad_())
    (grad,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="_projection_backward is not implemented"):
        grad.sum().backward()


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("rows", [2, 7, 300])
@pytest.mark.parametrize("onednn", [None, False, True])
def test_rows_are_apart(onednn, rows, poison):
    """A row of output and input gradient follows from its own row, to the bit."""
    if onednn and not torch.backends.mkldnn.is_available():
        pytest.skip("this PyTorch has no oneDNN")
    arguments = tensors((rows,), 48, 40, torch.float32)
    grad = random_grad(arguments)
    clean = forced(onednn)(arguments, grad)
    arguments["x"][1::2] = poison
    grad[1::2] = poison
    dirty = forced(onednn)(arguments, grad)
    for name in ("output", "grad_x"):
        assert torch.equal(clean[name][::2], dirty[name][::2]), name
        assert not dirty[name][1::2].isfinite().any(), name


def test_runs_are_equal(device):
    arguments = tensors((3, 101), 72, 56, torch.float32, device)
    grad = random_grad(arguments)
    first, second = (results(functional.projection, arguments, grad) for _ in range(2))
    for name, result in first.items():
        assert torch.equal(result, second[name]), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype, device):
    x, weight, bias = tensors((2, 5), 8, 4, torch.float32, device).values()
    weight.requires_grad_()
    with torch.autocast(device, dtype):
        output = functional.projection(x, weight, bias)
        expected = F.linear(x, weight, bias)
    assert output.dtype == expected.dtype == dtype
    torch.testing.assert_close(output, expected)
    (grad,) = torch.autograd.grad(output.sum(), weight)
    assert grad.dtype == torch.float32


OPCHECK_LAYOUTS = {
    "dense": lambda x: x,
    "transposed": lambda x: x.transpose(0, 1),
    "expanded": lambda x: x[:1, :1].expand_as(x),
}


@pytest.mark.parametrize("layout", OPCHECK_LAYOUTS)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "plain"])
def test_opcheck(layout, bias, device):
    values = tensors((5, 3), 8, 4, torch.float32, device, bias)
    x, *parameters = values.values()
    x = OPCHECK_LAYOUTS[layout](x)
    torch.library.opcheck(
        torch.ops.subquad._projection_forward,
        (x, parameters[0], parameters[1] if bias else None),
    )
    leaves = [value.detach().requires_grad_() for value in (x, *parameters)]
    torch.library.opcheck(torch.ops.subquad.projection, tuple(leaves))


@pytest.mark.parametrize("layout", OPCHECK_LAYOUTS)
@pytest.mark.parametrize("mask", [(True, True, True), (True, False, False)])
def test_opcheck_backward(layout, mask, device):
    arguments = tensors((5, 3), 8, 4, torch.float32, device)
    grad = OPCHECK_LAYOUTS[layout](random_grad(arguments))
    x = arguments["x"] if mask[1] else None
    torch.library.opcheck(
        torch.ops.subquad._projection_backward,
        (grad, x, arguments["weight"], list(mask)),
    )


def test_compiles_once(device):
    counter = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()

    @torch.compile(backend=counter, fullgraph=True, dynamic=True)
    def step(x, weight, bias):
        return functional.projection(x, weight, bias).relu()

    for L in (11, 13, 17, 19):
        arguments = tensors((3, L), 8, 4, torch.float32, device)
        leaves = [x.requires_grad_() for x in arguments.values()]
        step(*leaves).sum().backward()
        expected = F.linear(*leaves).relu()
        torch.testing.assert_close(step(*leaves), expected)
    assert counter.frame_count == 1


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(4, 8))
        self.bias = torch.nn.Parameter(torch.randn(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.projection(x, self.weight, self.bias)


def test_script():
    layer = Layer()
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(layer), file)
    file.seek(0)
    x = torch.randn(2, 5, 8)
    assert torch.equal(torch.jit.load(file)(x), layer(x))


def test_export():
    layer = Layer()
    L = torch.export.Dim("L", min=2)
    exported = torch.export.export(
        layer, (torch.randn(2, 5, 8),), dynamic_shapes={"x": {1: L}}
    )
    targets = [node.target for node in exported.graph.nodes if node.op != "output"]
    assert torch.ops.subquad.projection.default in targets
    x = torch.randn(2, 11, 8)
    torch.testing.assert_close(exported.module()(x), layer(x))


FLOAT, DOUBLE = torch.float32, torch.float64
ERRORS = {
    "rank": (
        ((), FLOAT),
        ((4, 8), FLOAT),
        None,
        ValueError,
        r"projection: input must be \[\.\.\., I\], got 0 dimensions",
    ),
    "dtype": (
        ((3, 8), torch.int64),
        ((4, 8), FLOAT),
        None,
        TypeError,
        "projection: input must be float64, float32, bfloat16 or float16, got Long",
    ),
    "weight rank": (
        ((3, 8), FLOAT),
        ((8,), FLOAT),
        None,
        ValueError,
        r"projection: weight must be \[O, I\], got 1 dimensions",
    ),
    "weight dtype": (
        ((3, 8), FLOAT),
        ((4, 8), DOUBLE),
        None,
        TypeError,
        "projection: weight must have the dtype of input, Float, got Double",
    ),
    "width": (
        ((3, 7), FLOAT),
        ((4, 8), FLOAT),
        None,
        ValueError,
        "projection: the last axis of input must be I = 8, got 7",
    ),
    "bias rank": (
        ((3, 8), FLOAT),
        ((4, 8), FLOAT),
        ((1, 4), FLOAT),
        ValueError,
        r"projection: bias must be \[O\], got 2 dimensions",
    ),
    "bias dtype": (
        ((3, 8), FLOAT),
        ((4, 8), FLOAT),
        ((4,), torch.bfloat16),
        TypeError,
        "projection: bias must have the dtype of input, Float, got BFloat16",
    ),
    "bias size": (
        ((3, 8), FLOAT),
        ((4, 8), FLOAT),
        ((5,), FLOAT),
        ValueError,
        "projection: axis 0 of bias must be O = 4, got 5",
    ),
}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("case", ERRORS)
def test_errors(case, device):
    *shapes, error, text = ERRORS[case]
    values = [
        None if given is None else torch.zeros(given[0], dtype=given[1], device=device)
        for given in shapes
    ]
    with pytest.raises(error, match=text):
        functional.projection(*values)


def test_other_device():
    x, weight = torch.zeros(3, 8), torch.zeros(4, 8, device="meta")
    with pytest.raises(
        ValueError,
        match="projection: weight must be on the device of input, cpu, got meta",
    ):
        functional.projection(x, weight)


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_onednn_is_refused_where_it_is_not(dtype):
    x = torch.zeros(8, 8, dtype=dtype)
    with pytest.raises(NotImplementedError, match="projection: oneDNN needs float32"):
        torch.ops.subquad._projection_forward(x, x, None, True)
    with (
        torch.backends.mkldnn.flags(enabled=False),
        pytest.raises(NotImplementedError, match="oneDNN enabled, got Float on cpu"),
    ):
        torch.ops.subquad._projection_forward(x.float(), x.float(), None, True)
