"""Padding masks as rows of valid tokens."""

import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend

from subquad import functional, reference

DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
]


def assert_same(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == torch.int64
        assert a.is_contiguous()
        assert torch.equal(a, e)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
def test_dtypes(dtype, device):
    mask = torch.tensor(
        [[0, 0, 1, 1], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]],
        device=device,
    )
    lengths, order = functional.mask_to_spans(mask.to(dtype))
    assert lengths.dtype == order.dtype == torch.int64
    assert lengths.tolist() == [2, 2, 2, 4, 0]
    assert order.tolist() == [
        [0, 1, 2, 3],
        [2, 3, 0, 1],
        [1, 3, 0, 2],
        [0, 1, 2, 3],
        [0, 1, 2, 3],
    ]


def test_every_number_but_zero_is_padding(device):
    mask = [[0.0, -0.0, float("nan"), 1e-30, float("-inf"), -2.0, 0.0]]
    lengths, order = functional.mask_to_spans(torch.tensor(mask, device=device))
    assert lengths.tolist() == [3]
    assert order.tolist() == [[0, 1, 6, 2, 3, 4, 5]]


@given(
    st.integers(0, 70).flatmap(
        lambda S: st.lists(
            st.lists(st.booleans(), min_size=S, max_size=S), min_size=1, max_size=5
        )
    )
)
def test_any_mask(rows):
    mask = torch.tensor(rows, dtype=torch.bool).view(len(rows), -1)
    assert_same(functional.mask_to_spans(mask), reference.mask_to_spans(mask))


@pytest.mark.parametrize("size", [(0, 5), (3, 0), (0, 0), (2, 40_000), (700, 301)])
def test_sizes(size, device):
    mask = torch.rand(size, device=device) < 0.5
    assert_same(functional.mask_to_spans(mask), reference.mask_to_spans(mask))


def test_strides(device):
    wide = torch.rand(6, 14, device=device) < 0.5
    for mask in (wide.t(), wide[:, ::2], wide[::2, 3:], wide[:1].expand(4, 14)):
        assert_same(functional.mask_to_spans(mask), reference.mask_to_spans(mask))


def test_mask_that_requires_a_gradient(device):
    mask = torch.tensor([[0.0, 1.0, 0.0]], device=device, requires_grad=True)
    lengths, order = functional.mask_to_spans(mask)
    assert not lengths.requires_grad
    assert not order.requires_grad
    assert order.tolist() == [[0, 2, 1]]


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_opcheck(dtype, device):
    mask = (torch.rand(3, 7, device=device) < 0.5).to(dtype)
    op = torch.ops.subquad.mask_to_spans.default
    torch.library.opcheck(op, (mask,))
    if dtype.is_floating_point:
        torch.library.opcheck(op, (mask.requires_grad_(),))


def test_compile_once_for_all_lengths(device):
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(
        functional.mask_to_spans, fullgraph=True, dynamic=True, backend=counter
    )
    for B, S in ((3, 7), (4, 11), (5, 29), (2, 64)):
        mask = torch.rand(B, S, device=device) < 0.5
        assert_same(compiled(mask), reference.mask_to_spans(mask))
    assert counter.frame_count == 1


def test_script(device):
    scripted = torch.jit.script(functional.mask_to_spans)
    mask = torch.rand(3, 7, device=device) < 0.5
    assert_same(scripted(mask), reference.mask_to_spans(mask))


def test_script_save_and_load(device):
    class Rows(torch.nn.Module):
        def forward(self, mask: torch.Tensor) -> torch.Tensor:
            return functional.mask_to_spans(mask)[1]

    file = io.BytesIO()
    torch.jit.save(torch.jit.script(Rows()), file)
    file.seek(0)
    mask = torch.rand(3, 7, device=device) < 0.5
    loaded = torch.jit.load(file)
    assert torch.equal(loaded(mask), reference.mask_to_spans(mask)[1])


def test_meta_shapes():
    lengths, order = functional.mask_to_spans(torch.empty(3, 7, device="meta"))
    assert lengths.shape == (3,)
    assert order.shape == (3, 7)
    assert lengths.dtype == order.dtype == torch.int64


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_refusals(device):
    with pytest.raises(
        ValueError, match=r"^mask_to_spans: mask must be \[B, S\], got 1 dimensions"
    ):
        functional.mask_to_spans(torch.zeros(3, device=device))
    with pytest.raises(
        TypeError,
        match=r"^mask_to_spans: mask must be of bool, of integers or of floating "
        r"point numbers, got ComplexFloat",
    ):
        zeros = torch.zeros(3, 4, dtype=torch.complex64, device=device)
        functional.mask_to_spans(zeros)
