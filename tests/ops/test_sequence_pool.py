"""Softmax pooling of a sequence into slots."""

import math

import pytest
import torch
from torch import Tensor

from subquad import functional, reference
from tests import util
from tests.ops.token_operator import ROWS, Case, TokenOperator

op = functional.sequence_pool_with_lse


def make(name, B=2, H=2, Hv=0, L=17, C=5, M=6, **options):
    if "cu_seqlens" in options:
        B = 1
    shape = {"logits": (B, H, L, C), "value": (B, Hv or H, L, M)}
    return Case(name, shape, options)


CASES = [
    make("plain"),
    *(make(name, **rows) for name, rows in ROWS.items()),
    make("grouped", H=6, Hv=2, **ROWS["starts"]),
    make("one-value-head", H=3, Hv=1, C=16, M=32),
    make("one-slot", C=1, M=1),
    make("full-vectors", C=16, M=16, **ROWS["lengths"]),
    make("one-token", L=1),
]
# Several segments, chunks and vectors, and what is left over of them.
LARGE_CASES = [
    make("segments", B=1, L=1321, C=16, M=64),
    make("segments-lengths", L=1031, C=19, M=33, starts=[7, 0], lengths=[1024, 513]),
    make("wide", B=1, L=130, C=67, M=80),
    make("packed-large", H=4, Hv=2, L=1500, C=8, M=24, cu_seqlens=[0, 64, 600, 1499]),
]


class Pool(torch.nn.Module):
    def forward(
        self,
        logits: Tensor,
        value: Tensor,
        lengths: Tensor | None = None,
        starts: Tensor | None = None,
        order: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ):
        return functional.sequence_pool_with_lse(
            logits, value, lengths, starts, order, cu_seqlens
        )


class TestSequencePool(TokenOperator):
    public = ("sequence_pool", "sequence_pool_with_lse")
    op = staticmethod(functional.sequence_pool_with_lse)
    reference = staticmethod(reference.sequence_pool_with_lse)
    module = Pool
    per_token = ("logits", "value")
    token_outputs = ()

    @pytest.fixture(params=CASES + LARGE_CASES, ids=str)
    def case(self, request):
        return request.param

    @pytest.fixture(params=CASES, ids=str)
    def small_case(self, request):
        return request.param

    @pytest.fixture(params=LARGE_CASES, ids=str)
    def large_case(self, request):
        return request.param

    def case_of_length(self, L):
        return make("length", L=L, lengths=[L, L // 2])

    def tensors(self, case, dtype=torch.float64, device="cpu", seed=0):
        tensors = super().tensors(case, torch.float64, device, seed)
        tensors["logits"] *= 3
        return {name: x.to(dtype) for name, x in tensors.items()}

    @pytest.mark.parametrize(
        ("spoiled", "exception", "text"),
        [
            (
                {"logits": torch.zeros(2, 7, 5)},
                ValueError,
                r"logits must be \[B, H, S, C\], got 3 dimensions",
            ),
            (
                {"value": torch.zeros(2, 7, 5)},
                ValueError,
                r"value must be \[B, Hv, S, M\], got 3 dimensions",
            ),
            (
                {"logits": torch.zeros(2, 2, 7, 5, dtype=torch.int64)},
                TypeError,
                "logits must be float64, float32, bfloat16 or float16, got Long",
            ),
            (
                {"value": torch.zeros(2, 2, 7, 6, dtype=torch.float64)},
                TypeError,
                "value must have the dtype of logits, Float, got Double",
            ),
            (
                {"value": torch.zeros(1, 2, 7, 6)},
                ValueError,
                "axis 0 of value must be B = 2, got 1",
            ),
            (
                {"value": torch.zeros(2, 2, 8, 6)},
                ValueError,
                "axis 2 of value must be S = 7, got 8",
            ),
            (
                {"value": torch.zeros(2, 3, 7, 6)},
                ValueError,
                "the heads of logits must be a multiple of those of value, got 2 and 3",
            ),
            (
                {"value": torch.zeros(2, 0, 7, 6)},
                ValueError,
                "the heads of logits must be a multiple of those of value, got 2 and 0",
            ),
            (
                {"logits": torch.zeros(2, 2, 7, 0)},
                ValueError,
                "C and M must be positive, got 0 and 6",
            ),
            (
                {"value": torch.zeros(2, 2, 6, 7).mT},
                ValueError,
                r"the last axis of value must be dense \(stride 1\), got stride 7",
            ),
            (
                {"lengths": torch.zeros(2)},
                TypeError,
                "lengths must be int64, got Float",
            ),
            (
                {"starts": torch.zeros(2).long(), "lengths": None},
                ValueError,
                "starts needs lengths, got none",
            ),
            (
                {"cu_seqlens": torch.zeros(2).long()},
                ValueError,
                "cu_seqlens excludes lengths and starts, got both",
            ),
        ],
    )
    def test_errors(self, spoiled, exception, text, device):
        self.check_error(spoiled, exception, text, device)


def test_spans_outside_the_axis_are_refused():
    x = torch.zeros(2, 1, 7, 4)
    with pytest.raises(ValueError, match=r"must be a span inside .*, got start 3"):
        op(x, x, lengths=torch.tensor([7, 5]), starts=torch.tensor([0, 3]))
    order = torch.zeros(2, 7, dtype=torch.int64)
    with pytest.raises(ValueError, match="must not repeat a token, got 0 twice"):
        op(x, x, lengths=torch.tensor([1, 2]), order=order)


@pytest.mark.parametrize("L", [0, 1, 2, 31, 67])
@pytest.mark.parametrize("C", [1, 7, 16, 33])
def test_sizes(L, C, device):
    tensors = util.random_tensors(
        {"logits": (2, 2, L, C), "value": (2, 1, L, 3)}, torch.float64, device
    )
    actual = util.results(op, tensors, {})
    expected = util.results(reference.sequence_pool_with_lse, tensors, {})
    util.assert_as_exact_as(actual, expected, expected, 64)


def test_empty_axes(device):
    for B, H in ((0, 2), (2, 0)):
        tensors = {
            "logits": torch.zeros(B, H, 3, 4, device=device),
            "value": torch.zeros(B, 1, 3, 5, device=device),
        }
        found = util.results(op, tensors, {})
        assert found["output"].shape == (B, H, 4, 5)
        assert not found["grad_value"].any()
    x = torch.zeros(1, 2, 3, 4, device=device)
    cu_seqlens = torch.zeros(1, dtype=torch.int64, device=device)
    assert functional.sequence_pool(x, x, cu_seqlens=cu_seqlens).shape == (0, 2, 4, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_slots_without_logits(dtype, device):
    """Logits of -inf hide tokens; a slot that sees none gives zeros and -inf."""
    tensors = util.random_tensors(
        {"logits": (2, 2, 700, 5), "value": (2, 2, 700, 6)}, dtype, device
    )
    tensors["logits"][:, :, ::3] = -math.inf
    tensors["logits"][:, :, :600, 1] = -math.inf
    tensors["logits"][..., 2] = -math.inf
    found = util.results(op, tensors, {})
    same = util.results(reference.sequence_pool_with_lse, tensors, {})
    exact = {name: x.double() for name, x in tensors.items()}
    exact = util.results(
        reference.sequence_pool_with_lse,
        exact,
        {},
        tuple(x.double() for x in util.output_gradients(found["output"], found["lse"])),
    )
    for name in ("grad_logits", "grad_value", "output"):
        assert found[name].isfinite().all(), name
    assert (found["lse"][:, :, 2] == -math.inf).all()
    assert not found["output"][:, :, 2].any()
    assert not found["grad_logits"][..., 2].any()
    util.assert_as_exact_as(found, same, exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rising", [True, False])
def test_large_logits(dtype, rising, device):
    """A maximum that moves all the time, far beyond the range of exp."""
    S = 1100
    steps = torch.arange(S, dtype=torch.float64, device=device) * 7
    logits = (steps if rising else -steps)[:, None].expand(1, 2, S, 3).to(dtype)
    value = torch.randn(1, 2, S, 4, device=device).to(dtype)
    tensors = {"logits": logits, "value": value}
    found = util.results(op, tensors, {})
    for name, result in found.items():
        assert result.isfinite().all(), name
    exact = reference.sequence_pool_with_lse(logits.double(), value.double())
    torch.testing.assert_close(found["lse"].double(), exact[1], rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(found["output"].double(), exact[0], rtol=1e-2, atol=1e-2)


def test_nan_reaches_its_slot_only(device):
    tensors = util.random_tensors(
        {"logits": (2, 2, 40, 5), "value": (2, 2, 40, 6)}, torch.float32, device
    )
    clean = op(**tensors)
    tensors["logits"][1, 0, 20, 3] = math.nan
    output, lse = op(**tensors)
    spoiled = torch.zeros(2, 2, 5, dtype=torch.bool, device=device)
    spoiled[1, 0, 3] = True
    assert output[spoiled].isnan().all()
    assert lse[spoiled].isnan().all()
    util.assert_same_bits(output, clean[0], ~spoiled[..., None].expand(output.shape))
    util.assert_same_bits(lse, clean[1], ~spoiled)


def test_parts_merge_to_the_whole(device):
    """By lse: what merge_attention makes of two halves is the pool of both."""
    tensors = util.random_tensors(
        {"logits": (2, 2, 40, 5), "value": (2, 2, 40, 6)}, torch.float64, device
    )
    early = op(**{name: x[:, :, :13] for name, x in tensors.items()})
    late = op(**{name: x[:, :, 13:] for name, x in tensors.items()})
    merged = functional.merge_attention(*early, *late)
    for actual, expected in zip(merged, op(**tensors), strict=True):
        torch.testing.assert_close(actual, expected)


def test_output_alone(device):
    tensors = util.random_tensors(
        {"logits": (2, 2, 40, 5), "value": (2, 1, 40, 6)}, torch.float32, device
    )
    output = functional.sequence_pool(**tensors)
    util.assert_same_bits(output, op(**tensors)[0])
    leaves = {k: v.requires_grad_() for k, v in tensors.items()}
    functional.sequence_pool(**leaves).sum().backward()
    assert all(x.grad.isfinite().all() for x in leaves.values())
