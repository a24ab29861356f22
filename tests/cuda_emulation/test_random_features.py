"""The CUDA kernels of random_features against the CPU's."""

import pytest
import torch

from subquad import reference

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# Gradients of projections are rounded for tensor cores; the CPU sums in another
# order.
TOLERANCES = {
    torch.float64: {"rtol": 1e-9, "atol": 1e-10},
    torch.float32: {"rtol": 1e-4, "atol": 2e-5},
    torch.bfloat16: {"rtol": 2e-2, "atol": 2e-2},
    torch.float16: {"rtol": 4e-3, "atol": 3e-3},
}
STABILIZED = [
    (kind, stabilizer)
    for kind in ("positive", "trigonometric")
    for stabilizer in ("token", "row", "prefix")
]
FREE = [(kind, "none") for kind in ("positive", "trigonometric", "sincos", "relu")]


class Case:
    """Arguments of the private operators, by the names of the schema."""

    def __init__(
        self,
        dtype=torch.float32,
        batch=2,
        heads=2,
        projection_heads=1,
        tokens=9,
        dim=5,
        projections=6,
        rows=None,
        initial=None,
        **options,
    ):
        torch.manual_seed(0)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        self.input = torch.randn(batch, tokens, heads, dim, dtype=dtype).transpose(1, 2)
        self.projection = torch.randn(projection_heads, projections, dim, dtype=dtype)
        self.initial = None
        if initial is not None:
            self.initial = initial + torch.randn(rows or batch, heads, dtype=wide)
        self.options = {
            "kind": "positive",
            "stabilizer": "token",
            "stabilizer_gradient": True,
            "eps": 0.0,
            "scale": dim**-0.25 if dim else 1.0,
            "spans": None,
            "packed": False,
            "order": None,
        } | options
        sines = self.options["kind"] in ("trigonometric", "sincos")
        width = projections * (2 if sines else 1)
        self.grad = torch.randn(batch, heads, tokens, width, dtype=dtype)
        self.grad_log_scale = torch.randn(batch, heads, tokens, dtype=wide)

    def forward(self, ops):
        return ops._random_features_forward(
            self.input, self.projection, self.initial, **self.options
        )

    def backward(self, ops, log_scale, wanted=None):
        return ops._random_features_backward(
            self.grad,
            self.grad_log_scale,
            log_scale,
            self.input,
            self.projection,
            self.initial,
            **self.options,
            output_mask=wanted or [True, True, self.initial is not None],
        )

    def check(self, emulated, in_every_order, assert_same):
        """Values and gradients, each side with its own log scale."""
        ops = torch.ops.subquad
        ours = in_every_order(lambda: self.forward(emulated))
        theirs = self.forward(ops)
        assert_same(ours, theirs, TOLERANCES)
        assert_same(
            in_every_order(lambda: self.backward(emulated, ours[1])),
            self.backward(ops, theirs[1]),
            TOLERANCES,
        )


def spans(*pairs):
    return torch.tensor(pairs, dtype=torch.int64)


@pytest.mark.parametrize(("kind", "stabilizer"), FREE + STABILIZED)
def test_kinds(emulated, in_every_order, assert_same, kind, stabilizer):
    case = Case(kind=kind, stabilizer=stabilizer, eps=0.01)
    case.check(emulated, in_every_order, assert_same)


@pytest.mark.parametrize(("kind", "stabilizer"), STABILIZED)
def test_continued(emulated, in_every_order, assert_same, kind, stabilizer):
    case = Case(kind=kind, stabilizer=stabilizer, initial=0.5)
    case.check(emulated, in_every_order, assert_same)


CASES = {
    "constant scale": {"stabilizer_gradient": False, "initial": 0.5},
    "grouped heads": {"heads": 4, "projection_heads": 2, "tokens": 5},
    "many tokens": {"batch": 1, "heads": 1, "tokens": 77, "dim": 3},
    "many projections": {"heads": 1, "tokens": 5, "projections": 130},
    "wide tokens": {"tokens": 5, "dim": 130, "scale": 0.05},
    "aligned": {"tokens": 17, "dim": 16, "projections": 40},
    "one": {"batch": 1, "heads": 1, "tokens": 1, "dim": 1, "projections": 1},
    "spans": {"spans": spans((2, 5), (0, 0)), "initial": 0.5},
    "packed": {
        "batch": 1,
        "rows": 4,
        "packed": True,
        "spans": spans((0, 4), (4, 0), (4, 3), (7, 2)),
        "initial": 0.5,
        "projection_heads": 2,
    },
    "order": {
        "spans": spans((0, 5), (0, 3)),
        "order": torch.tensor([[8, 1, 3, 0, 6, 2, 4, 5, 7], list(range(9))]),
        "initial": -0.5,
    },
}


@pytest.mark.parametrize("stabilizer", ["token", "row", "prefix"])
@pytest.mark.parametrize("name", CASES)
def test_options(emulated, in_every_order, assert_same, name, stabilizer):
    case = Case(**CASES[name], stabilizer=stabilizer)
    case.check(emulated, in_every_order, assert_same)


@pytest.mark.parametrize(("kind", "stabilizer"), [*FREE[2:], *STABILIZED[2:4]])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(emulated, in_every_order, assert_same, dtype, kind, stabilizer):
    case = Case(
        dtype,
        kind=kind,
        stabilizer=stabilizer,
        tokens=75,
        heads=1,
        dim=33,
        projections=75,
        scale=0.2,
    )
    case.check(emulated, in_every_order, assert_same)


@pytest.mark.parametrize("stabilizer", ["row", "prefix"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_long_scans(emulated, in_every_order, assert_same, dtype, stabilizer):
    """More tokens than a block of the scan has threads, and several segments."""
    case = Case(
        dtype=dtype,
        stabilizer=stabilizer,
        batch=1,
        heads=2,
        tokens=530,
        dim=2,
        projections=3,
        initial=0.5,
    )
    case.check(emulated, in_every_order, assert_same)


@pytest.mark.parametrize(("kind", "stabilizer"), STABILIZED)
def test_ties(emulated, in_every_order, assert_same, kind, stabilizer):
    """Equal tokens, equal projections and an equal initial value."""
    case = Case(torch.float64, kind=kind, stabilizer=stabilizer, initial=0.0, scale=1.0)
    case.input = (
        torch.ones_like(case.input)
        * torch.tensor([1.0, 2, 2, 1, 2, 0, 1, 1, 2])[:, None]
    )
    case.projection[:] = 1.0
    case.initial[:] = 10.0
    case.initial[0, 0] = 20.0
    case.check(emulated, in_every_order, assert_same)


@pytest.mark.parametrize(("kind", "stabilizer"), FREE + STABILIZED)
def test_gradients_against_the_reference(emulated, kind, stabilizer):
    initial = None if stabilizer == "none" else 0.5
    case = Case(
        torch.float64, kind=kind, stabilizer=stabilizer, initial=initial, scale=0.7
    )
    case.input[:, :, 3] = case.input[:, :, 2]
    given = [case.input, case.projection]
    if case.initial is not None:
        given.append(case.initial)
    leaves = [x.clone().requires_grad_() for x in given]
    results = reference.random_features(
        *leaves[:2],
        kind,
        stabilizer,
        scale=0.7,
        initial_log_scale=leaves[2] if len(leaves) > 2 else None,
    )
    grads = torch.autograd.grad(
        [x for x in results if x.requires_grad],
        leaves,
        [case.grad, case.grad_log_scale][: sum(x.requires_grad for x in results)],
    )
    ours = case.forward(emulated)
    torch.testing.assert_close(ours, results)
    for one, other in zip(case.backward(emulated, ours[1]), grads, strict=False):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("given", [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize("wanted", range(3))
def test_single_gradients(emulated, in_every_order, assert_same, given, wanted):
    case = Case(initial=0.5)
    if not given[0]:
        case.grad = None
    if not given[1]:
        case.grad_log_scale = None
    mask = [index == wanted for index in range(3)]
    ours = case.forward(emulated)
    assert_same(
        in_every_order(lambda: case.backward(emulated, ours[1], mask)),
        case.backward(torch.ops.subquad, case.forward(torch.ops.subquad)[1], mask),
        TOLERANCES,
    )


@pytest.mark.parametrize(("kind", "stabilizer"), FREE + STABILIZED)
@pytest.mark.parametrize("dtype", DTYPES)
def test_outside_is_not_read(emulated, in_every_order, dtype, kind, stabilizer):
    """NaN outside the rows leaves no trace, bit for bit."""
    options = {
        "kind": kind,
        "stabilizer": stabilizer,
        "initial": None if stabilizer == "none" else 0.5,
        "tokens": 20,
        "dim": 16,
        "spans": spans((3, 9), (0, 6)),
    }
    clean, dirty = Case(dtype, **options), Case(dtype, **options)
    inside = torch.zeros(2, 1, 20, 1, dtype=torch.bool)
    inside[0, :, 3:12] = inside[1, :, :6] = True
    nan = torch.nan
    dirty.input = torch.where(inside, dirty.input, nan)
    dirty.grad = torch.where(inside, dirty.grad, nan)
    dirty.grad_log_scale = torch.where(inside[..., 0], dirty.grad_log_scale, nan)
    first = in_every_order(lambda: clean.forward(emulated))
    second = in_every_order(lambda: dirty.forward(emulated))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)
    log_scale = torch.where(inside[..., 0], first[1], nan)
    for one, other in zip(
        in_every_order(lambda: clean.backward(emulated, first[1])),
        in_every_order(lambda: dirty.backward(emulated, log_scale)),
        strict=True,
    ):
        assert torch.equal(one, other)
        assert one.isfinite().all()


@pytest.mark.parametrize(("kind", "stabilizer"), FREE + STABILIZED[2::3])
def test_nan_stays_with_its_token(emulated, kind, stabilizer):
    """Nor does it reach earlier tokens through a maximum or its gradient."""
    options = {"kind": kind, "stabilizer": stabilizer, "dim": 16, "tokens": 20}
    clean, dirty = Case(**options), Case(**options)
    dirty.input = dirty.input.clone()
    dirty.input[:, :, 12] = torch.nan
    first, second = clean.forward(emulated), dirty.forward(emulated)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one[:, :, :12], other[:, :, :12])
    assert second[0][:, :, 12].isnan().all()
    grad = dirty.backward(emulated, second[1])[0]
    assert grad[:, :, :12].isfinite().all()
    assert kind == "relu" or grad[:, :, 12].isnan().all()


@pytest.mark.parametrize("sizes", [(0, 2, 3), (2, 0, 3), (2, 2, 0)])
def test_nothing(emulated, in_every_order, assert_same, sizes):
    batch, heads, tokens = sizes
    case = Case(batch=batch, heads=heads, tokens=tokens, initial=0.5)
    case.check(emulated, in_every_order, assert_same)


def test_wrong_values_stay_inside_the_tensors(emulated):
    """Nobody can check them without waiting for the device."""
    case = Case(
        spans=spans((-4, 1 << 40), (1 << 40, 5)),
        order=torch.tensor([[8, 7, 6, 5, 4, 3, 2, 1, -9]]).expand(2, 9),
        stabilizer="prefix",
    )
    features, log_scale = case.forward(emulated)
    assert features.isfinite().all()
    case.backward(emulated, log_scale)


def test_wide_heads_are_refused(emulated):
    case = Case(dim=257)
    with pytest.raises(
        NotImplementedError,
        match="random_features: the head dimension D is at most 256 on CUDA, got 257",
    ):
        case.forward(emulated)


def test_widest_heads(emulated, in_every_order, assert_same):
    for dtype in DTYPES:
        case = Case(
            dtype, batch=1, heads=1, tokens=3, dim=256, projections=20, scale=0.05
        )
        case.check(emulated, in_every_order, assert_same)
