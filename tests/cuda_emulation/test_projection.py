"""The arguments that projection gives to cuBLAS: the emulator's product reads
column-major matrices by them as cuBLAS would."""

import pytest
import torch

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# ATen's product on the CPU may sum in another order, or in parts of bfloat16.
TOLERANCES = {
    torch.float64: {"rtol": 1e-10, "atol": 1e-11},
    torch.float32: {"rtol": 1e-4, "atol": 1e-5},
    torch.bfloat16: {"rtol": 2e-2, "atol": 2e-2},
    torch.float16: {"rtol": 4e-3, "atol": 4e-3},
}


def compare(emulated, assert_same, values, weight, bias):
    cpu = torch.ops.subquad
    output = emulated._projection_forward(values, weight, bias)
    expected = cpu._projection_forward(values, weight, bias, False)
    assert_same((output,), (expected,), TOLERANCES)
    grad = torch.randn_like(output)
    for mask in ([True, True, bias is not None], [False, True, False]):
        arguments = (grad, values, weight, mask)
        ours = emulated._projection_backward(*arguments)
        theirs = cpu._projection_backward(*arguments, False)
        wanted = [index for index, given in enumerate(mask) if given]
        assert_same(
            [ours[index] for index in wanted],
            [theirs[index] for index in wanted],
            TOLERANCES,
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("biased", [False, True])
def test_values(emulated, assert_same, dtype, biased):
    torch.manual_seed(0)
    weight = torch.randn(9, 31, dtype=dtype)
    bias = torch.randn(9, dtype=dtype) if biased else None
    compare(emulated, assert_same, torch.randn(2, 5, 31, dtype=dtype), weight, bias)


LAYOUTS = {
    "transposed input": lambda: (torch.randn(5, 3, 8).transpose(0, 1), (6, 8)),
    "columns of a wider input": lambda: (torch.randn(7, 24)[:, 8:16], (6, 8)),
    "every second column": lambda: (torch.randn(7, 16)[:, ::2], (6, 8)),
    "input in columns": lambda: (torch.randn(8, 7).t(), (6, 8)),
    "one row in columns": lambda: (torch.randn(8).as_strided((1, 8), (1, 1)), (6, 8)),
    "stride 0": lambda: (torch.randn(8).expand(7, 8), (6, 8)),
    "vector": lambda: (torch.randn(8), (6, 8)),
    "one column": lambda: (torch.randn(7, 1), (6, 1)),
    "no rows": lambda: (torch.randn(0, 8), (6, 8)),
    "no columns": lambda: (torch.randn(7, 0), (6, 0)),
    "no outputs": lambda: (torch.randn(7, 8), (0, 8)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("transposed", [False, True])
def test_layouts(emulated, assert_same, layout, transposed):
    torch.manual_seed(1)
    values, (outputs, inputs) = LAYOUTS[layout]()
    weight = (
        torch.randn(inputs, outputs).t() if transposed else torch.randn(outputs, inputs)
    )
    compare(emulated, assert_same, values, weight, torch.randn(outputs))


def test_bias_is_added_before_rounding(emulated):
    """256.5 rounds to 256 in bfloat16; with 1.5 the sum is 258."""
    values = torch.tensor([[256.0, 0.5]], dtype=torch.bfloat16)
    weight = torch.ones(1, 2, dtype=torch.bfloat16)
    bias = torch.tensor([1.5], dtype=torch.bfloat16)
    assert emulated._projection_forward(values, weight, bias).item() == 258.0
