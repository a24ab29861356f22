"""The CUDA kernel of mask_to_spans against the CPU's."""

import pytest
import torch

DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float64,
    torch.float32,
    torch.bfloat16,
    torch.float16,
]


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(emulated, in_every_order, assert_same, dtype):
    torch.manual_seed(0)
    mask = (torch.randint(0, 3, (3, 130)) == 0).to(dtype)
    if dtype.is_floating_point:
        mask[0, 5], mask[1, 6], mask[2, 7] = -0.0, torch.nan, -torch.inf
    elif dtype != torch.bool:
        mask[0, 5] = torch.iinfo(dtype).min
    assert_same(
        in_every_order(lambda: emulated.mask_to_spans(mask)),
        torch.ops.subquad.mask_to_spans(mask),
    )


@pytest.mark.parametrize("size", [0, 1, 31, 33, 255, 256, 257, 700])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_sizes(emulated, in_every_order, assert_same, size, share):
    torch.manual_seed(1)
    mask = torch.rand(2, size) < share
    assert_same(
        in_every_order(lambda: emulated.mask_to_spans(mask)),
        torch.ops.subquad.mask_to_spans(mask),
    )


def test_layout_and_no_rows(emulated, in_every_order, assert_same):
    for mask in (torch.rand(75, 3).t() < 0.5, torch.zeros(0, 5, dtype=torch.bool)):
        assert_same(
            in_every_order(lambda mask=mask: emulated.mask_to_spans(mask)),
            torch.ops.subquad.mask_to_spans(mask),
        )
