"""Efficient attention: softmax of queries and keys apart."""

import re

import pytest
import torch

from subquad import functional, reference
from tests import util

B, H, L, S, D, M = 2, 4, 11, 13, 6, 5
INDICES = {
    "whole": {},
    "lengths": {"lengths": [13, 4], "query_lengths": [3, 11]},
    "spans": {
        "lengths": [7, 4],
        "starts": [2, 9],
        "query_lengths": [3, 8],
        "query_starts": [8, 0],
    },
    "no keys": {"lengths": [0, 5]},
    "order": {
        "lengths": [4, 3],
        "order": [[12, 3, 4, 0, *range(5, 12), 1, 2], list(range(13))],
        "query_lengths": [2, 4],
        "query_order": [[7, 1, 0, 2, 3, 4, 5, 6, 8, 9, 10], list(range(11))],
    },
    "packed": {"cu_seqlens": [0, 4, 4, 13], "query_cu_seqlens": [0, 5, 6, 11]},
    "packed alike": {"cu_seqlens": [1, 4, 11]},
}


def arguments(kind, device="cpu"):
    return {k: torch.tensor(v, device=device) for k, v in INDICES[kind].items()}


def tensors(dtype, device="cpu", kind="whole", Hkv=H):
    rows = 1 if kind.startswith("packed") else B
    shape = {
        "query": (rows, H, L, D),
        "key": (rows, Hkv, L if kind == "packed alike" else S, D),
        "value": (rows, Hkv, L if kind == "packed alike" else S, M),
    }
    return util.random_tensors(shape, dtype, device)


def outcome(op, inputs, options):
    """Output and gradients, by name."""
    leaves = {k: x.detach().requires_grad_() for k, x in inputs.items()}
    output = op(**leaves, **options)
    weight = torch.arange(output.numel()).view(output.shape).to(output).sin()
    grads = torch.autograd.grad(output, list(leaves.values()), weight)
    named = {f"grad_{k}": g for k, g in zip(leaves, grads, strict=True)}
    return {"output": output.detach(), **named}


@pytest.mark.parametrize("Hkv", [H, 2, 1])
@pytest.mark.parametrize("kind", INDICES)
@pytest.mark.parametrize("dtype", util.DTYPES, ids=str)
def test_parity(dtype, kind, Hkv, device):
    inputs, options = tensors(dtype, device, kind, Hkv), arguments(kind, device)
    actual = outcome(functional.efficient_attention, inputs, options)
    same = outcome(reference.efficient_attention, inputs, options)
    exact = outcome(
        reference.efficient_attention,
        {name: x.double() for name, x in inputs.items()},
        options,
    )
    for name, result in actual.items():
        assert result.dtype == dtype, name
    util.assert_as_exact_as(actual, same, exact, units=8)


def test_definition():
    x = tensors(torch.float64)
    q = x["query"].softmax(-1)
    k = x["key"].softmax(2)
    expected = torch.einsum("bhld,bhsd,bhsm->bhlm", q, k, x["value"])
    output = functional.efficient_attention(**x)
    torch.testing.assert_close(output, expected * D**-0.5)
    output = functional.efficient_attention(**x, scale=3.0)
    torch.testing.assert_close(output, expected * 3)


@pytest.mark.parametrize("kind", ["whole", "spans", "packed"])
def test_gradcheck(kind, device):
    inputs = [x.requires_grad_() for x in tensors(torch.float64, device, kind).values()]
    options = arguments(kind, device)

    def output(*values):
        return functional.efficient_attention(*values, **options)

    assert torch.autograd.gradcheck(output, inputs)


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
@pytest.mark.parametrize("kind", ["lengths", "spans", "order", "packed alike"])
def test_what_lies_outside_the_rows_is_not_read(kind, poison, device):
    options = arguments(kind, device)
    inputs = tensors(torch.float32, device, kind)
    # Tokens whose gradient is zero on all features are outside.
    clean = outcome(functional.efficient_attention, inputs, options)
    poisoned = {}
    for name, x in inputs.items():
        outside = (clean[f"grad_{name}"] == 0).all(-1, keepdim=True)
        assert outside.any(), name
        poisoned[name] = x.masked_fill(outside, poison)
    again = outcome(functional.efficient_attention, poisoned, options)
    for name, result in clean.items():
        util.assert_same_bits(again[name], result)


def test_a_row_without_keys_gives_zeros(device):
    found = outcome(
        functional.efficient_attention,
        tensors(torch.float32, device),
        arguments("no keys", device),
    )
    for result in found.values():
        assert not result[0].any()
        assert result[1].any()


@pytest.mark.parametrize("size", [0, 1])
def test_short_sequences(size, device):
    x = torch.randn(2, 3, size, 4, device=device, requires_grad=True)
    y = torch.randn(2, 3, 5, 4, device=device, requires_grad=True)
    for query, key in ((x, y), (y, x), (x, x)):
        output = functional.efficient_attention(query, key, key)
        assert output.shape == query.shape
        assert output.isfinite().all()
        output.sum().backward()


def test_large_numbers_stay_finite(device):
    x = torch.randn(1, 2, 64, 8, device=device) * 50
    exact = reference.efficient_attention(x.double(), x.double(), x.double())
    for dtype in (torch.float32, torch.float16):
        output = functional.efficient_attention(*[x.to(dtype)] * 3)
        tolerance = 1e3 * torch.finfo(dtype).eps
        torch.testing.assert_close(output.double(), exact, atol=tolerance, rtol=0.1)


def test_opcheck_compile_script(device):
    inputs = {k: x.requires_grad_() for k, x in tensors(torch.float32, device).items()}
    options = arguments("spans", device)
    op = torch.ops.subquad.efficient_attention.default
    torch.library.opcheck(op, tuple(inputs.values()), options)
    expected = functional.efficient_attention(**inputs, **options)
    for other in (
        torch.compile(functional.efficient_attention, fullgraph=True),
        torch.jit.script(functional.efficient_attention),
    ):
        torch.testing.assert_close(other(**inputs, **options), expected)


def test_one_compilation_for_four_lengths(device):
    torch._dynamo.reset()
    compilations = []

    def backend(graph, inputs):
        compilations.append(graph)
        return graph.forward

    compiled = torch.compile(
        functional.efficient_attention, fullgraph=True, dynamic=True, backend=backend
    )
    for length in (7, 11, 16, 29):
        x = torch.randn(2, 4, length, 6, device=device)
        y = torch.randn(2, 4, length + 2, 6, device=device)
        expected = functional.efficient_attention(x, y, y)
        torch.testing.assert_close(compiled(x, y, y), expected)
    assert len(compilations) == 1


def test_autocast():
    inputs = tensors(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        output = functional.efficient_attention(**inputs)
    assert output.dtype == torch.bfloat16
    expected = functional.efficient_attention(**inputs)
    torch.testing.assert_close(output.float(), expected, atol=0.02, rtol=0.02)


def test_the_layout_of_the_query_is_kept():
    x = torch.randn(L, B, H * D).view(L, B, H, D).permute(1, 2, 0, 3)
    output = functional.efficient_attention(x, x, x)
    assert output.permute(2, 0, 1, 3).is_contiguous()


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"query": (2, 4, 6)}, ValueError, "query must be [B, H, L, D], got 3 dim"),
        ({"key": (4, 13, 6)}, ValueError, "key must be [B, Hkv, S, D], got 3 dim"),
        ({"value": (13, 6)}, ValueError, "value must be [B, Hkv, S, M], got 2 dim"),
        ({"key": (3, 4, 13, 6)}, ValueError, "axis 0 of key must be B = 2, got 3"),
        ({"key": (2, 4, 13, 7)}, ValueError, "axis 3 of key must be D = 6, got 7"),
        ({"value": (3, 4, 13, 5)}, ValueError, "axis 0 of value must be B = 2"),
        ({"value": (2, 2, 13, 5)}, ValueError, "axis 1 of value must be Hkv = 4"),
        ({"value": (2, 4, 12, 5)}, ValueError, "axis 2 of value must be S = 13"),
        ({"query": torch.int64}, TypeError, "query must be float64"),
        ({"key": torch.bool}, TypeError, "key must be float64"),
        ({"value": torch.int32}, TypeError, "value must be float64"),
    ],
)
def test_errors(change, error, text, device):
    inputs = tensors(torch.float32)
    for name, what in change.items():
        if isinstance(what, tuple):
            inputs[name] = torch.randn(what)
        else:
            inputs[name] = inputs[name].to(what)
    inputs = {name: x.to(device) for name, x in inputs.items()}
    with pytest.raises(error, match=re.escape(f"efficient_attention: {text}")):
        functional.efficient_attention(**inputs)
