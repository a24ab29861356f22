"""The CUDA kernels of sequence_pool against the CPU's."""

import pytest
import torch

from subquad import reference

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# Weights are rounded for tensor cores; the CPU sums in another order.
TOLERANCES = {
    torch.float64: {"rtol": 1e-9, "atol": 1e-10},
    torch.float32: {"rtol": 1e-4, "atol": 1e-5},
    torch.bfloat16: {"rtol": 2e-2, "atol": 2e-2},
    torch.float16: {"rtol": 4e-3, "atol": 3e-3},
}


class Case:
    """Arguments of the private operators, by the names of the schema."""

    def __init__(
        self,
        dtype=torch.float32,
        batch=2,
        heads=2,
        value_heads=1,
        tokens=9,
        slots=5,
        dim=6,
        rows=None,
        **options,
    ):
        torch.manual_seed(0)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        rows = batch if rows is None else rows
        self.logits = torch.randn(batch, tokens, heads, slots, dtype=dtype)
        self.logits = self.logits.transpose(1, 2)
        self.value = torch.randn(batch, value_heads, tokens, dim, dtype=dtype)
        self.grad = torch.randn(rows, heads, slots, dim, dtype=dtype)
        self.grad_lse = torch.randn(rows, heads, slots, dtype=wide)
        self.options = {"spans": None, "packed": False, "order": None} | options

    def forward(self, ops):
        return ops._sequence_pool_forward(self.logits, self.value, **self.options)

    def backward(self, ops, results, wanted=(True, True)):
        return ops._sequence_pool_backward(
            self.grad,
            self.grad_lse,
            *results,
            self.logits,
            self.value,
            **self.options,
            output_mask=wanted,
        )

    def check(self, emulated, in_every_order, assert_same):
        """Values and gradients."""
        ops = torch.ops.subquad
        results = self.forward(ops)
        assert_same(in_every_order(lambda: self.forward(emulated)), results, TOLERANCES)
        assert_same(
            in_every_order(lambda: self.backward(emulated, results)),
            self.backward(ops, results),
            TOLERANCES,
        )


def spans(*pairs):
    return torch.tensor(pairs, dtype=torch.int64)


CASES = {
    "plain": {},
    "grouped heads": {"heads": 4, "value_heads": 2, "tokens": 5},
    "many tokens": {"batch": 1, "heads": 1, "tokens": 77, "slots": 3},
    "many slots": {"heads": 1, "tokens": 5, "slots": 130},
    "wide values": {"tokens": 5, "dim": 130},
    "aligned": {"tokens": 17, "dim": 16, "slots": 16},
    "one": {"batch": 1, "heads": 1, "tokens": 1, "dim": 1, "slots": 1},
    "spans": {"spans": spans((2, 5), (0, 0))},
    "packed": {
        "batch": 1,
        "rows": 4,
        "packed": True,
        "spans": spans((0, 4), (4, 0), (4, 3), (7, 2)),
        "value_heads": 2,
    },
    "order": {
        "spans": spans((0, 5), (0, 3)),
        "order": torch.tensor([[8, 1, 3, 0, 6, 2, 4, 5, 7], list(range(9))]),
    },
    "no batch": {"batch": 0},
    "no heads": {"heads": 0, "value_heads": 1},
    "no tokens": {"tokens": 0},
}


@pytest.mark.parametrize("name", CASES)
def test_options(emulated, in_every_order, assert_same, name):
    Case(**CASES[name]).check(emulated, in_every_order, assert_same)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(emulated, in_every_order, assert_same, dtype):
    case = Case(dtype=dtype, tokens=75, slots=70, dim=33)
    case.check(emulated, in_every_order, assert_same)


@pytest.mark.parametrize("dtype", DTYPES)
def test_segments(emulated, in_every_order, assert_same, dtype):
    """Long rows are pooled in parts; one row ends before the last of them."""
    case = Case(
        dtype,
        heads=1,
        tokens=1130,
        slots=3,
        dim=4,
        spans=spans((1, 1129), (0, 40)),
    )
    case.check(emulated, in_every_order, assert_same)


@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_logits(emulated, in_every_order, assert_same, dtype):
    """Far from zero, and -inf for some tokens or for all."""
    case = Case(dtype, tokens=20)
    case.logits = case.logits + 200
    case.logits[0, 0, :10, 0] = -torch.inf
    case.logits[0, 1, :, 2] = -torch.inf
    results = in_every_order(lambda: case.forward(emulated))
    assert results[1][0, 1, 2] == -torch.inf
    assert (results[0][0, 1, 2] == 0).all()
    case.check(emulated, in_every_order, assert_same)


def test_gradients_against_the_reference(emulated):
    case = Case(torch.float64, value_heads=2)
    leaves = [x.clone().requires_grad_() for x in (case.logits, case.value)]
    lengths = torch.tensor([7, 0])
    case.options["spans"] = spans((0, 7), (0, 0))
    results = reference.sequence_pool_with_lse(*leaves, lengths)
    grads = torch.autograd.grad(results, leaves, [case.grad, case.grad_lse])
    ours = case.forward(emulated)
    torch.testing.assert_close(ours, results)
    torch.testing.assert_close(case.backward(emulated, ours), grads)


@pytest.mark.parametrize("given", [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize("wanted", range(2))
def test_single_gradients(emulated, in_every_order, assert_same, given, wanted):
    case = Case()
    if not given[0]:
        case.grad = None
    if not given[1]:
        case.grad_lse = None
    mask = [index == wanted for index in range(2)]
    results = case.forward(torch.ops.subquad)
    assert_same(
        in_every_order(lambda: case.backward(emulated, results, mask)),
        case.backward(torch.ops.subquad, results, mask),
        TOLERANCES,
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_outside_is_not_read(emulated, in_every_order, dtype):
    """NaN outside the rows leaves no trace, bit for bit."""
    options = {"tokens": 20, "dim": 16, "spans": spans((3, 9), (0, 6))}
    clean, dirty = Case(dtype, **options), Case(dtype, **options)
    inside = torch.zeros(2, 1, 20, 1, dtype=torch.bool)
    inside[0, :, 3:12] = inside[1, :, :6] = True
    dirty.logits = torch.where(inside, dirty.logits, torch.nan)
    dirty.value = torch.where(inside, dirty.value, torch.nan)
    results = in_every_order(lambda: clean.forward(emulated))
    for one, other in zip(
        (*results, *in_every_order(lambda: clean.backward(emulated, results))),
        (
            *in_every_order(lambda: dirty.forward(emulated)),
            *in_every_order(lambda: dirty.backward(emulated, results)),
        ),
        strict=True,
    ):
        assert torch.equal(one, other)
        assert one.isfinite().all()


def test_nan_stays_with_its_slot(emulated):
    clean, dirty = Case(value_heads=2), Case(value_heads=2)
    dirty.logits = dirty.logits.clone()
    dirty.logits[0, 0, 4, 2] = torch.nan
    for one, other in zip(
        clean.forward(emulated), dirty.forward(emulated), strict=True
    ):
        assert other[0, 0, 2].isnan().all()
        other[0, 0, 2] = one[0, 0, 2]
        assert torch.equal(one, other)


def test_wrong_values_stay_inside_the_tensors(emulated):
    """Nobody can check them without waiting for the device."""
    case = Case(
        spans=spans((-4, 1 << 40), (1 << 40, 5)),
        order=torch.tensor([[8, 7, 6, 5, 4, 3, 2, 1, -9]]).expand(2, 9),
    )
    results = case.forward(emulated)
    assert results[0].isfinite().all()
    case.backward(emulated, results)


def test_wide_values_are_refused(emulated):
    case = Case(dim=257)
    results = case.forward(torch.ops.subquad)
    assert (case.forward(emulated)[0] - results[0]).abs().max() < 1e-5
    with pytest.raises(
        NotImplementedError,
        match="sequence_pool: the value dimension M is at most 256 for gradients on "
        "CUDA, got 257",
    ):
        case.backward(emulated, results)


def test_widest_values(emulated, in_every_order, assert_same):
    for dtype in DTYPES:
        case = Case(dtype, batch=1, heads=1, tokens=3, slots=20, dim=256)
        case.check(emulated, in_every_order, assert_same)
