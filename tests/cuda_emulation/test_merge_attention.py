"""The CUDA kernels of merge_attention against the CPU's."""

import pytest
import torch

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
NONE = -torch.inf


def accumulation(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def arguments(batch, heads, length, width, dtype, layout="bhl"):
    """Two outputs, their lse and a gradient; `layout` is the order in memory."""
    sizes = {"b": batch, "h": heads, "l": length}
    order = [layout.index(axis) for axis in "bhl"]

    def vectors():
        stored = torch.randn([sizes[axis] for axis in layout] + [width], dtype=dtype)
        return stored.permute(*order, 3)

    def lines():
        return torch.randn(batch, heads, length, dtype=accumulation(dtype))

    return vectors(), lines(), vectors(), lines(), vectors(), lines()


def empty_sides(a, lse_a, b, lse_b):
    """Queries without keys on one side, or on both, with NaN in their place."""
    for index, sides in enumerate(["a", "b", "ab"]):
        for side, (output, lse) in {"a": (a, lse_a), "b": (b, lse_b)}.items():
            if side in sides:
                lse[0, 0, index] = NONE
                output[0, 0, index] = torch.nan


SIZES = [(2, 3, 1, 1), (1, 2, 31, 8), (2, 1, 33, 7), (1, 1, 75, 64), (1, 1, 5, 130)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", SIZES)
def test_values(emulated, in_every_order, assert_same, sizes, dtype):
    torch.manual_seed(0)
    *inputs, grad, grad_lse = arguments(*sizes, dtype)
    if sizes[2] > 2:
        empty_sides(*inputs)
    ours, cpu = emulated, torch.ops.subquad
    assert_same(
        in_every_order(lambda: ours._merge_attention_forward(*inputs)),
        cpu._merge_attention_forward(*inputs),
    )
    everything = (grad, grad_lse, *inputs, [True] * 4)
    assert_same(
        in_every_order(lambda: ours._merge_attention_backward(*everything)),
        cpu._merge_attention_backward(*everything),
    )


@pytest.mark.parametrize("layout", ["lbh", "blh"])
@pytest.mark.parametrize("offset", [0, 1])
def test_layouts(emulated, in_every_order, assert_same, layout, offset):
    """Strided inputs; with an offset no vector of 16 bytes is aligned."""
    torch.manual_seed(1)
    *inputs, grad, grad_lse = arguments(2, 3, 33, 17, torch.float32, layout)
    inputs[0], inputs[2], grad = (
        tensor[..., offset : offset + 16] for tensor in (inputs[0], inputs[2], grad)
    )
    inputs[1] = inputs[1].transpose(0, 1).contiguous().transpose(0, 1)
    assert_same(
        in_every_order(lambda: emulated._merge_attention_forward(*inputs)),
        torch.ops.subquad._merge_attention_forward(*inputs),
    )
    everything = (grad, grad_lse, *inputs, [True] * 4)
    assert_same(
        in_every_order(lambda: emulated._merge_attention_backward(*everything)),
        torch.ops.subquad._merge_attention_backward(*everything),
    )


@pytest.mark.parametrize("given", [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("wanted", range(4))
def test_single_gradients(emulated, in_every_order, assert_same, given, wanted):
    torch.manual_seed(2)
    *inputs, grad, grad_lse = arguments(1, 2, 5, 12, torch.float32)
    everything = (
        grad if given[0] else None,
        grad_lse if given[1] else None,
        *inputs,
        [index == wanted for index in range(4)],
    )
    assert_same(
        in_every_order(lambda: emulated._merge_attention_backward(*everything)),
        torch.ops.subquad._merge_attention_backward(*everything),
    )


@pytest.mark.parametrize("sizes", [(0, 2, 3, 4), (2, 1, 0, 4), (2, 1, 3, 0)])
def test_nothing(emulated, in_every_order, assert_same, sizes):
    *inputs, grad, grad_lse = arguments(*sizes, torch.float32)
    assert_same(
        in_every_order(lambda: emulated._merge_attention_forward(*inputs)),
        torch.ops.subquad._merge_attention_forward(*inputs),
    )
    everything = (grad, grad_lse, *inputs, [True] * 4)
    assert_same(
        in_every_order(lambda: emulated._merge_attention_backward(*everything)),
        torch.ops.subquad._merge_attention_backward(*everything),
    )
