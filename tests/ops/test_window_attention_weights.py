"""The softmax weights of window attention."""

import math

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from subquad import functional, reference
from tests import util

op = functional.window_attention_weights
WINDOW = {"block": 4, "left": 3, "right": 2}


def inputs(case, dtype=torch.float64, device="cpu"):
    """Tensors and other arguments of a case, with the lse of its attention."""
    tensors, arguments = case.tensors(dtype, device), case.arguments(device)
    _, lse = functional.window_attention_with_lse(**tensors, **arguments)
    for given in (tensors, arguments):
        for name in list(given):
            if name == "value" or name.startswith(("summar", "dropout")):
                del given[name]
    return {**tensors, "lse": lse}, arguments


def results(function, tensors, arguments, gradient):
    leaves = {name: x.detach().requires_grad_() for name, x in tensors.items()}
    weights = function(**leaves, **arguments)
    grads = torch.autograd.grad(weights, list(leaves.values()), gradient)
    named = {f"grad_{name}": g for name, g in zip(leaves, grads, strict=True)}
    return {"weights": weights.detach(), **named}


def gradient_like(weights):
    shape = {"weights": tuple(weights.shape)}
    return util.random_tensors(shape, weights.dtype, weights.device, 7)["weights"]


@pytest.mark.parametrize("dtype", util.DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("case", util.CASES, ids=str)
def test_parity(case, dtype, device):
    tensors, arguments = inputs(case, dtype, device)
    gradient = gradient_like(op(**tensors, **arguments))
    actual = results(op, tensors, arguments, gradient)
    twin = reference.window_attention_weights
    same = results(twin, tensors, arguments, gradient)
    tensors = {name: x.double() for name, x in tensors.items()}
    exact = results(twin, tensors, arguments, gradient.double())
    for name, result in actual.items():
        assert result.dtype == same[name].dtype, name
    units = 64 if dtype == torch.float64 else 8
    util.assert_as_exact_as(actual, same, exact, units)


@pytest.mark.parametrize("case", util.CASES, ids=str)
def test_gradcheck(case, device):
    tensors, arguments = inputs(case, device=device)
    # A query that sees nothing has no lse to move.
    tensors["lse"] = torch.where(tensors["lse"].isfinite(), tensors["lse"], 0)
    names = list(tensors)

    def weights(*values):
        return op(**dict(zip(names, values, strict=True)), **arguments)

    values = [x.detach().requires_grad_() for x in tensors.values()]
    assert torch.autograd.gradcheck(weights, values, fast_mode=True)


@pytest.mark.parametrize("case", util.CASES, ids=str)
def test_opcheck(case, device):
    tensors, arguments = inputs(case, torch.float32, device)
    tensors = {name: x.requires_grad_() for name, x in tensors.items()}
    torch.library.opcheck(
        torch.ops.subquad.window_attention_weights.default,
        (tensors.pop("query"), tensors.pop("key"), tensors.pop("lse")),
        {**tensors, **arguments},
    )


@pytest.mark.parametrize("case", [c for c in util.CASES if not c.C], ids=str)
def test_sum(case, device):
    """All weights of a query sum to 1 where there are no summaries."""
    tensors, arguments = inputs(case, device=device)
    total = op(**tensors, **arguments).sum(-1)
    torch.testing.assert_close(total, (tensors["lse"] > -math.inf).double())


def test_slots(device):
    """Weights times the values of the slots are the attention."""
    case = next(case for case in util.CASES if case.name == "sliding-causal")
    tensors, arguments = case.tensors(device=device), case.arguments(device)
    output, lse = functional.window_attention_with_lse(**tensors, **arguments)
    value = tensors.pop("value")
    weights = op(**tensors, lse=lse, **arguments)
    padded = torch.nn.functional.pad(value, (0, 0, case.left, case.right))
    windows = padded.unfold(2, case.left + 1 + case.right, 1)  # [B, H, L, M, W]
    torch.testing.assert_close(
        torch.einsum("bhlw,bhlmw->bhlm", weights, windows), output
    )


def test_nothing_outside_a_row_matters(device):
    x = torch.randn(2, 2, 9, 4, device=device, dtype=torch.float64)
    lse = torch.zeros(2, 2, 9, device=device, dtype=torch.float64)
    gradient = torch.randn(2, 2, 9, 9, device=device, dtype=torch.float64)
    lengths = torch.tensor([9, 5], device=device)
    rows = {"lengths": lengths, "query_lengths": lengths}
    tensors = {"query": x, "key": x, "lse": lse}
    clean = results(op, tensors, {**WINDOW, **rows}, gradient)
    for poison in (math.nan, math.inf):
        spoiled = {name: t.clone() for name, t in tensors.items()}
        for t in spoiled.values():
            t[1, :, 5:] = poison
        gradient[1, :, 5:] = poison
        # Slots that hold no key of the row.
        gradient[0, :, 0, :3] = poison
        found = results(op, spoiled, {**WINDOW, **rows}, gradient)
        for name, result in found.items():
            util.assert_same_bits(result, clean[name], name=name)


def test_queries_without_keys(device):
    x = torch.randn(1, 1, 3, 4, device=device)
    lse = torch.full((1, 1, 3), -math.inf, device=device)
    lengths = torch.tensor([0], device=device)
    for arguments in ({}, {"lengths": lengths}):
        tensors = {"query": x, "key": x, "lse": lse}
        gradient = torch.ones(1, 1, 3, 9, device=device)
        for name, result in results(
            op, tensors, {**WINDOW, **arguments}, gradient
        ).items():
            assert not result.any(), name


@pytest.mark.parametrize("L", [0, 1, 2, 3, 37])
@pytest.mark.parametrize("S", [0, 1, 37])
def test_sizes(L, S, device):
    shape = {"query": (2, 2, L, 4), "key": (2, 2, S, 4), "lse": (2, 2, L)}
    tensors = util.random_tensors(shape, torch.float64, device)
    gradient = torch.ones(2, 2, L, 9, device=device, dtype=torch.float64)
    actual = results(op, tensors, WINDOW, gradient)
    expected = results(reference.window_attention_weights, tensors, WINDOW, gradient)
    for name, result in actual.items():
        torch.testing.assert_close(result, expected[name], msg=name)


def test_strides(device):
    shape = {"query": (2, 3, 11, 4), "key": (2, 3, 11, 4), "lse": (2, 3, 11)}
    tensors = util.random_tensors(shape, torch.float64, device)
    gradient = torch.ones((), device=device, dtype=torch.float64)
    gradient = gradient.expand(2, 3, 11, 9)
    expected = results(op, tensors, WINDOW, gradient.contiguous())
    strided = {
        "query": tensors["query"].permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3),
        "key": torch.cat([tensors["key"]] * 2, 3)[..., 4:],
        "lse": tensors["lse"].transpose(0, 2).contiguous().transpose(0, 2),
    }
    actual = results(op, strided, WINDOW, gradient)
    for name, result in actual.items():
        util.assert_same_bits(result, expected[name], name=name)


def test_autocast(device):
    shape = {"query": (2, 3, 11, 4), "key": (2, 3, 11, 4), "lse": (2, 3, 11)}
    tensors = util.random_tensors(shape, torch.float32, device)
    with torch.autocast(device, torch.bfloat16):
        weights = op(**tensors, **WINDOW)
    lse = tensors.pop("lse")
    low = {name: x.bfloat16() for name, x in tensors.items()}
    util.assert_same_bits(weights, op(**low, lse=lse, **WINDOW))


def test_script(device):
    case = next(case for case in util.CASES if case.name == "order-all")
    tensors, arguments = inputs(case, device=device)
    scripted = torch.jit.script(op)
    util.assert_same_bits(scripted(**tensors, **arguments), op(**tensors, **arguments))


def test_compile_once_for_all_lengths(device):
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(op, fullgraph=True, dynamic=True, backend=counter)
    first = 0
    for L in (13, 17, 29, 64):
        shape = {"query": (2, 3, L, 4), "key": (2, 3, L, 4), "lse": (2, 3, L)}
        tensors = util.random_tensors(shape, torch.float32, device)
        gradient = torch.ones(2, 3, L, 9, device=device)
        actual = results(compiled, tensors, WINDOW, gradient)
        expected = results(op, tensors, WINDOW, gradient)
        for name, result in actual.items():
            util.assert_same_bits(result, expected[name], name=name)
        # The first call may trace more than once (it looks for constant floats).
        first = first or counter.frame_count
    assert counter.frame_count == first


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        (
            {"lse": (2, 3)},
            ValueError,
            r"window_attention_weights: lse must be \[B, H, L\], got 2 dimensions",
        ),
        (
            {"lse": (2, 3, 12)},
            ValueError,
            "window_attention_weights: axis 2 of lse must be L = 11, got 12",
        ),
        (
            {"lse": (2, 1, 11)},
            ValueError,
            "window_attention_weights: axis 1 of lse must be H = 3, got 1",
        ),
        (
            {"lse": torch.float64},
            TypeError,
            "window_attention_weights: lse must be Float where query is Float, "
            "got Double",
        ),
        (
            {"key": (2, 3, 11, 5)},
            ValueError,
            "window_attention: axis 3 of key must be D = 4, got 5",
        ),
        ({"block": 0}, ValueError, "window_attention: block must be positive, got 0"),
    ],
)
def test_refusals(changes, error, text, device):
    shape = {"query": (2, 3, 11, 4), "key": (2, 3, 11, 4), "lse": (2, 3, 11)}
    tensors = util.random_tensors(shape, torch.float32, device)
    arguments = {**WINDOW}
    for name, change in changes.items():
        if isinstance(change, tuple):
            tensors[name] = torch.zeros(change, device=device)
        elif isinstance(change, torch.dtype):
            tensors[name] = tensors[name].to(change)
        else:
            arguments[name] = change
    with pytest.raises(error, match="^" + text):
        op(**tensors, **arguments)
