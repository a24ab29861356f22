"""Window attention among the tools of PyTorch: dispatcher, compilers, autocast."""

import io

import pytest
import torch
from torch._dynamo.utils import counters

from subquad import functional
from tests import util

BY_NAME = {case.name: case for case in util.CASES}
WINDOW = {"block": 4, "left": 4, "right": 2}
# One for each way an argument reaches the operator.
SELECTED = [
    "block-overlap",
    "position-batch-causal",
    "spans",
    "packed-cross",
    "summaries-relative",
    "order-all",
    "all",
    "all-packed",
]


@pytest.fixture(params=SELECTED)
def case(request):
    return BY_NAME[request.param]


@pytest.mark.parametrize("name", ["window_attention", "window_attention_with_lse"])
def test_opcheck(name, case, device):
    tensors = {
        name: x.requires_grad_()
        for name, x in case.tensors(torch.float32, device).items()
    }
    positional = tuple(tensors.pop(name) for name in ("query", "key", "value"))
    torch.library.opcheck(
        getattr(torch.ops.subquad, name).default,
        positional,
        {**tensors, **case.arguments(device)},
    )


def private_arguments(case, device):
    """Arguments of ``_window_attention_forward``, by name and in order."""
    given = {**case.tensors(torch.float32, device), **case.arguments(device)}
    spans = {"query_spans": [], "key_spans": []}
    for _, _, *row in util.rows(case):
        for table, tokens in zip(spans.values(), row, strict=True):
            # With an order, spans count ranks.
            start = tokens.start if isinstance(tokens, range) else 0
            table.append([start, len(tokens)])
    for name, rows in spans.items():
        given[name] = torch.tensor(rows, device=device)
    given["key_order"] = given.pop("order", None)
    given["packed"] = "cu_seqlens" in given
    given.setdefault("scale", case.D**-0.5)
    defaults = {
        argument.name: argument.default_value
        for argument in torch.ops.subquad.window_attention.default._schema.arguments
    }
    schema = torch.ops.subquad._window_attention_forward.default._schema
    return [
        given.get(argument.name, defaults.get(argument.name))
        for argument in schema.arguments
    ]


def test_opcheck_private(case, device):
    forward = torch.ops.subquad._window_attention_forward.default
    arguments = private_arguments(case, device)
    torch.library.opcheck(forward, arguments)
    output, lse = forward(*arguments)
    expected = functional.window_attention_with_lse(
        **case.tensors(torch.float32, device), **case.arguments(device)
    )
    util.assert_same_bits(output, expected[0])
    util.assert_same_bits(lse, expected[1])
    wanted = [isinstance(x, torch.Tensor) for x in arguments[:9]]
    torch.library.opcheck(
        torch.ops.subquad._window_attention_backward.default,
        (*util.output_gradients(output, lse), output, lse, *arguments, wanted),
    )


def test_compile(case, device):
    """One graph, and the bits of eager mode."""
    op = functional.window_attention_with_lse
    torch.compiler.reset()
    compiled = torch.compile(op, fullgraph=True, dynamic=True)
    tensors, arguments = case.tensors(torch.float32, device), case.arguments(device)
    expected = util.results(op, tensors, arguments)
    for name, result in util.results(compiled, tensors, arguments).items():
        util.assert_same_bits(result, expected[name], name=name)


def test_one_compilation_for_all_lengths(device):
    torch.compiler.reset()
    counters.clear()

    @torch.compile(fullgraph=True, dynamic=True)
    def attend(query, key, value, lengths):
        return functional.window_attention(query, key, value, lengths=lengths, **WINDOW)

    for L in (37, 53, 64, 101):
        x = torch.randn(2, 3, L, 8, device=device, requires_grad=True)
        lengths = torch.tensor([L, L - 9], device=device)
        actual = attend(x, x, x, lengths)
        expected = functional.window_attention(x, x, x, lengths=lengths, **WINDOW)
        util.assert_same_bits(actual, expected)
        (grad,) = torch.autograd.grad(actual.sum(), x)
        (expected_grad,) = torch.autograd.grad(expected.sum(), x)
        util.assert_same_bits(grad, expected_grad)
        assert counters["stats"]["unique_graphs"] == 1


class Attention(torch.nn.Module):
    def forward(self, query, key, value, lengths):
        return functional.window_attention_with_lse(
            query, key, value, block=4, left=4, right=2, lengths=lengths
        )


def test_export(device):
    """The operator stays one node of the exported graph."""
    x = torch.randn(2, 3, 37, 8, device=device)
    lengths = torch.tensor([37, 11], device=device)
    L = torch.export.Dim("L", min=2, max=4096)
    sizes = {2: L}
    program = torch.export.export(
        Attention(), (x, x, x, lengths), dynamic_shapes=(sizes, sizes, sizes, None)
    )
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    targets = [node.target for node in calls if "subquad" in str(node.target)]
    assert targets == [torch.ops.subquad.window_attention_with_lse.default]
    longer = torch.randn(2, 3, 61, 8, device=device)
    arguments = (longer, longer, longer, torch.tensor([50, 61], device=device))
    pairs = zip(program.module()(*arguments), Attention()(*arguments), strict=True)
    for actual, expected in pairs:
        util.assert_same_bits(actual, expected)


@pytest.mark.parametrize("name", ["window_attention", "window_attention_with_lse"])
def test_script(name, case, device):
    """Wrappers are scriptable with every argument, gradients included."""
    function = getattr(functional, name)
    scripted = torch.jit.script(function)
    tensors, arguments = case.tensors(torch.float32, device), case.arguments(device)
    leaves = {k: v.requires_grad_() for k, v in tensors.items()}
    for _ in range(3):  # profiled, optimised, optimised
        actual = scripted(**leaves, **arguments)
    expected = function(**leaves, **arguments)
    if name == "window_attention":
        actual, expected = (actual,), (expected,)
    for x, y in zip(actual, expected, strict=True):
        util.assert_same_bits(x, y)
    grads = torch.autograd.grad(actual[0].sum(), list(leaves.values()))
    wanted = torch.autograd.grad(expected[0].sum(), list(leaves.values()))
    for x, y in zip(grads, wanted, strict=True):
        util.assert_same_bits(x, y)


def test_script_save_and_load(device):
    x = torch.randn(2, 3, 37, 8, device=device)
    lengths = torch.tensor([37, 11], device=device)
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(Attention()), buffer)
    buffer.seek(0)
    loaded = torch.jit.load(buffer)
    pairs = zip(loaded(x, x, x, lengths), Attention()(x, x, x, lengths), strict=True)
    for actual, expected in pairs:
        util.assert_same_bits(actual, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype, case, device):
    """Everything is cast: the bits of a call in the lower precision."""
    op = functional.window_attention_with_lse
    tensors, arguments = case.tensors(torch.float32, device), case.arguments(device)
    leaves = {k: v.requires_grad_() for k, v in tensors.items()}
    with torch.autocast(device, dtype):
        output, lse = op(**leaves, **arguments)
        alone = functional.window_attention(**leaves, **arguments)
    assert output.dtype == alone.dtype == dtype
    assert lse.dtype == torch.float32
    low = {k: v.to(dtype) for k, v in tensors.items()}
    expected = util.results(op, low, arguments)
    util.assert_same_bits(output, expected["output"])
    util.assert_same_bits(alone, expected["output"])
    util.assert_same_bits(lse, expected["lse"])
    gradients = util.output_gradients(output, lse)
    grads = torch.autograd.grad((output, lse), list(leaves.values()), gradients)
    for name, grad in zip(leaves, grads, strict=True):
        assert grad.dtype == torch.float32, name
        util.assert_same_bits(grad, expected[f"grad_{name}"].float(), name=name)


def test_autocast_of_mixed_dtypes(device):
    """Half a model in float32, half in bfloat16, as autocast leaves it."""
    x = torch.randn(1, 2, 9, 8, device=device)
    with torch.autocast(device, torch.bfloat16):
        mixed = functional.window_attention(x, x.bfloat16(), x, **WINDOW)
    low = x.bfloat16()
    util.assert_same_bits(mixed, functional.window_attention(low, low, low, **WINDOW))


def test_double_backward_is_refused(device):
    x = torch.randn(1, 2, 9, 8, device=device, requires_grad=True)
    output = functional.window_attention(x, x, x, **WINDOW)
    (grad,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="_window_attention_backward is not impl"):
        grad.sum().backward()


def test_torch_func_is_refused(device):
    x = torch.randn(1, 2, 9, 8, device=device)

    def loss(x):
        return functional.window_attention(x, x, x, **WINDOW).sum()

    with pytest.raises(RuntimeError, match="functorch transforms"):
        torch.func.grad(loss)(x)


@pytest.mark.parametrize("grad_mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(grad_mode, case, device):
    tensors, arguments = case.tensors(torch.float32, device), case.arguments(device)
    leaves = {k: v.requires_grad_() for k, v in tensors.items()}
    expected = functional.window_attention(**leaves, **arguments)
    with grad_mode():
        actual = functional.window_attention(**leaves, **arguments)
    assert expected.requires_grad
    assert not actual.requires_grad
    util.assert_same_bits(actual, expected.detach())


def test_inputs_changed_before_backward_are_noticed(device):
    x = torch.randn(1, 2, 9, 8, device=device, requires_grad=True)
    key = torch.randn(1, 2, 9, 8, device=device)
    output = functional.window_attention(x, key, key, **WINDOW)
    key.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_meta(case):
    """Meta gives shapes, dtypes and strides of the CPU."""
    op = functional.window_attention_with_lse
    tensors, arguments = case.tensors(torch.bfloat16), case.arguments()
    expected = util.results(op, tensors, arguments)
    actual = util.results(
        op,
        {k: v.to("meta") for k, v in tensors.items()},
        case.arguments("meta"),
    )
    for name, result in actual.items():
        wanted = expected[name]
        assert result.shape == wanted.shape, name
        assert result.dtype == wanted.dtype, name
        assert result.stride() == wanted.stride(), name
