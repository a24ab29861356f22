"""Rotary positions."""

import cmath

import pytest
import torch

from subquad.nn import LocalAttention, MultiheadAttention
from subquad.nn.rotary import rotate, rotations
from tests.nn.util import close


def turn(x, positions, base):
    return rotate(x, rotations(positions, x.size(-1), base, x.dtype))


def test_each_pair_turns_by_its_angle():
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    positions = torch.tensor([[0, 1, 2, 3, 4], [7, -1, 0, 2, 1000]])
    turned = turn(x, positions, 50.0)
    for b in range(2):
        for i in range(5):
            for pair in range(3):
                angle = positions[b, i].item() * 50.0 ** (-2 * pair / 6)
                even, odd = x[b, :, i, 2 * pair], x[b, :, i, 2 * pair + 1]
                expected = torch.complex(even, odd) * cmath.exp(1j * angle)
                found = turned[b, :, i, 2 * pair : 2 * pair + 2]
                close(torch.view_as_complex(found.contiguous()), expected)


def test_products_depend_on_distance_only():
    q, k = torch.randn(2, 1, 2, 1, 16, dtype=torch.float64)
    products = [
        turn(q, torch.tensor([p + 3]), 1e4) * turn(k, torch.tensor([p]), 1e4)
        for p in (0, 5, 1000)
    ]
    for product in products[1:]:
        close(product.sum(-1), products[0].sum(-1))


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str
)
def test_dtype_layout_and_gradient(dtype):
    x = torch.randn(7, 2, 24, dtype=dtype).view(7, 2, 3, 8).permute(1, 2, 0, 3)
    x.requires_grad_()
    turned = turn(x, torch.arange(7), 1e4)
    assert turned.dtype == dtype
    assert turned.stride() == x.stride()
    norm, expected = turned.double().norm(dim=-1), x.double().norm(dim=-1)
    torch.testing.assert_close(norm, expected, atol=0.02, rtol=0.02)
    (gradient,) = torch.autograd.grad(turned.square().sum(), x)
    torch.testing.assert_close(gradient, 2 * x, atol=0.05, rtol=0.05)


def test_compiled_equals_eager():
    x, positions = torch.randn(2, 3, 5, 8), torch.arange(5)
    expected = turn(x, positions, 100.0)
    rotation = rotations(positions, 8, 100.0, x.dtype)
    compiled = torch.compile(rotate, fullgraph=True, backend="eager")
    close(compiled(x, rotation), expected)
    rotation = torch.jit.script(rotations)(positions, 8, 100.0, torch.float32)
    close(torch.jit.script(rotate)(x, rotation), expected)


@pytest.mark.parametrize("cls", [LocalAttention, MultiheadAttention])
def test_positions_matter_and_padding_has_none(cls):
    module = cls(32, 4, causal=True, rotary_base=100.0)
    query = torch.randn(6, 1, 32)
    plain = cls(32, 4, causal=True)
    plain.load_state_dict(module.state_dict())
    assert (module(query)[0] - plain(query)[0]).abs().max() > 1e-3
    padded = torch.cat((torch.zeros(3, 1, 32), query))
    mask = torch.tensor([[1, 1, 1, 0, 0, 0, 0, 0, 0]])
    output, _ = module(padded, key_padding_mask=mask)
    close(output[3:], module(query)[0], 1e-6)
