"""Random features of tokens."""

import math

import pytest
import torch
from torch import Tensor

from subquad import functional, reference
from tests import util
from tests.ops.token_operator import ROWS, Case, TokenOperator

op = functional.random_features


def make(name, B=2, H=2, Hp=0, L=17, D=6, R=5, initial=False, **options):
    rows = B
    if "cu_seqlens" in options:
        B, rows = 1, len(options["cu_seqlens"]) - 1
    shape = {"input": (B, H, L, D), "projection": (Hp or H, R, D)}
    if initial:
        shape["initial_log_scale"] = (rows, H)
    return Case(name, shape, options)


MAPS = {
    "positive-none": {"kind": "positive", "stabilizer": "none"},
    "positive-token": {"kind": "positive", "stabilizer": "token"},
    "positive-row": {"kind": "positive", "stabilizer": "row"},
    "positive-prefix": {"kind": "positive", "stabilizer": "prefix"},
    "trigonometric-none": {"kind": "trigonometric", "stabilizer": "none"},
    "trigonometric-token": {"kind": "trigonometric", "stabilizer": "token"},
    "trigonometric-row": {"kind": "trigonometric", "stabilizer": "row"},
    "trigonometric-prefix": {"kind": "trigonometric", "stabilizer": "prefix"},
    "sincos": {"kind": "sincos", "stabilizer": "none"},
    "relu": {"kind": "relu", "stabilizer": "none"},
}
STABILIZED = {k: v for k, v in MAPS.items() if v["stabilizer"] != "none"}
CASES = [
    *(make(name, **options) for name, options in MAPS.items()),
    *(
        make(f"{name}-initial", initial=True, **options)
        for name, options in STABILIZED.items()
    ),
    *(
        make(f"{name}-constant", initial=True, stabilizer_gradient=False, **options)
        for name, options in STABILIZED.items()
    ),
    *(
        make(f"{stabilizer}-{name}", initial=True, stabilizer=stabilizer, **rows)
        for stabilizer in ("token", "row", "prefix")
        for name, rows in ROWS.items()
    ),
    make("relu-order", kind="relu", stabilizer="none", **ROWS["order"]),
    make("shared-projection", H=6, Hp=2, stabilizer="prefix", **ROWS["starts"]),
    make("one-projection", H=3, Hp=1, stabilizer="row", R=16, D=16),
    make("eps-scale", eps=0.01, scale=0.5),
    make("eps-relu", kind="relu", stabilizer="none", eps=0.01, **ROWS["lengths"]),
    make("one-feature", R=1, D=1),
    make("one-token", L=1, stabilizer="prefix"),
]
# Several tiles and groups of tiles, and what is left over of them.
LARGE_CASES = [
    make("tiles", B=1, L=517, D=64, R=64, stabilizer="prefix"),
    make("tiles-row", L=331, D=33, R=40, stabilizer="row", lengths=[331, 200]),
    make("tiles-token", L=145, D=24, R=19, initial=True),
    make(
        "tiles-trigonometric",
        L=203,
        D=20,
        R=35,
        kind="trigonometric",
        stabilizer="prefix",
        starts=[4, 0],
        lengths=[199, 97],
    ),
    make("tiles-sincos", L=97, D=16, R=48, kind="sincos", stabilizer="none"),
    make(
        "tiles-packed",
        H=4,
        Hp=2,
        L=700,
        D=16,
        R=32,
        stabilizer="prefix",
        initial=True,
        cu_seqlens=[0, 1, 50, 50, 600, 699],
    ),
]


class Features(torch.nn.Module):
    def forward(
        self,
        input: Tensor,
        projection: Tensor,
        kind: str = "positive",
        stabilizer: str = "token",
        stabilizer_gradient: bool = True,
        eps: float = 0.0,
        scale: float | None = None,
        initial_log_scale: Tensor | None = None,
        lengths: Tensor | None = None,
        starts: Tensor | None = None,
        order: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ):
        return functional.random_features(
            input,
            projection,
            kind,
            stabilizer,
            stabilizer_gradient,
            eps,
            scale,
            initial_log_scale,
            lengths,
            starts,
            order,
            cu_seqlens,
        )


def wide(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


class TestRandomFeatures(TokenOperator):
    public = ("random_features",)
    op = staticmethod(functional.random_features)
    reference = staticmethod(reference.random_features)
    module = Features
    per_token = ("input",)
    token_outputs = ("output", "lse")
    shared = ("projection",)
    units = 8

    @pytest.fixture(params=CASES + LARGE_CASES, ids=str)
    def case(self, request):
        return request.param

    # A finite difference moves m, whatever is asked of gradients.
    @pytest.fixture(
        params=[c for c in CASES if c.options.get("stabilizer_gradient", True)], ids=str
    )
    def small_case(self, request):
        return request.param

    @pytest.fixture(params=LARGE_CASES, ids=str)
    def large_case(self, request):
        return request.param

    def case_of_length(self, L):
        return make(
            "length",
            L=L,
            initial=True,
            stabilizer="prefix",
            lengths=[L, L // 2],
        )

    def tensors(self, case, dtype=torch.float64, device="cpu", seed=0):
        tensors = super().tensors(case, torch.float64, device, seed)
        return {
            name: x.to(wide(dtype) if name == "initial_log_scale" else dtype)
            for name, x in tensors.items()
        }

    @pytest.mark.parametrize(
        ("spoiled", "exception", "text"),
        [
            (
                {"input": torch.zeros(2, 7, 6)},
                ValueError,
                r"input must be \[B, H, L, D\], got 3 dimensions",
            ),
            (
                {"input": torch.zeros(2, 2, 7, 6).int()},
                TypeError,
                "input must be float64, float32, bfloat16 or float16, got Int",
            ),
            (
                {"projection": torch.zeros(2, 6)},
                ValueError,
                r"projection must be \[Hp, R, D\], got 2 dimensions",
            ),
            (
                {"projection": torch.zeros(2, 5, 6).half()},
                TypeError,
                "projection must have the dtype of input, Float, got Half",
            ),
            (
                {"projection": torch.zeros(2, 5, 7)},
                ValueError,
                "axis 2 of projection must be D = 6, got 7",
            ),
            (
                {"projection": torch.zeros(3, 5, 6)},
                ValueError,
                "the heads of input must be a multiple of those of projection, "
                "got 2 and 3",
            ),
            (
                {"projection": torch.zeros(2, 0, 6)},
                ValueError,
                "R and D must be positive, got 0 and 6",
            ),
            (
                {"input": torch.zeros(2, 2, 6, 7).mT},
                ValueError,
                r"the last axis of input must be dense \(stride 1\), got stride 7",
            ),
            (
                {"kind": "cosine"},
                ValueError,
                "kind must be 'positive', 'trigonometric', 'sincos' or 'relu', "
                "got 'cosine'",
            ),
            (
                {"stabilizer": "all"},
                ValueError,
                "stabilizer must be 'none', 'token', 'row' or 'prefix', got 'all'",
            ),
            (
                {"kind": "relu"},
                ValueError,
                "stabilizer must be 'none' where kind is 'relu', got 'prefix'",
            ),
            (
                {"kind": "sincos", "stabilizer": "token"},
                ValueError,
                "stabilizer must be 'none' where kind is 'sincos', got 'token'",
            ),
            ({"eps": math.inf}, ValueError, "eps must be finite, got inf"),
            ({"scale": math.nan}, ValueError, "scale must be finite, got nan"),
            (
                {"stabilizer": "none"},
                ValueError,
                "initial_log_scale needs a stabilizer, got 'none'",
            ),
            (
                {"initial_log_scale": torch.zeros(2)},
                ValueError,
                r"initial_log_scale must be \[rows, H\], got 1 dimensions",
            ),
            (
                {"initial_log_scale": torch.zeros(2, 2).double()},
                TypeError,
                "initial_log_scale must be Float where input is Float, got Double",
            ),
            (
                {"initial_log_scale": torch.zeros(3, 2)},
                ValueError,
                "axis 0 of initial_log_scale must be the number of rows = 2, got 3",
            ),
            (
                {"initial_log_scale": torch.zeros(2, 1)},
                ValueError,
                "axis 1 of initial_log_scale must be H = 2, got 1",
            ),
            (
                {"lengths": torch.zeros(3).long()},
                ValueError,
                "axis 0 of lengths must be the batch size = 2, got 3",
            ),
            (
                {"order": torch.zeros(2, 7).long(), "lengths": None},
                ValueError,
                "order needs lengths, got none",
            ),
        ],
    )
    def test_errors(self, spoiled, exception, text, device):
        self.check_error(spoiled, exception, text, device)


def test_spans_outside_the_axis_are_refused():
    x, w = torch.zeros(2, 1, 7, 4), torch.zeros(1, 3, 4)
    with pytest.raises(ValueError, match=r"must be a span inside .*, got start 3"):
        op(x, w, lengths=torch.tensor([7, 5]), starts=torch.tensor([0, 3]))


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", ["positive", "trigonometric"])
def test_nothing_comes_from_the_future(kind, poison, device):
    """The prefix stabiliser, at every cut of 64: bits of the past stay."""
    L = 300
    tensors = util.random_tensors(
        {"input": (1, 2, L, 16), "projection": (2, 24, 16)}, torch.float32, device
    )
    arguments = {"kind": kind, "stabilizer": "prefix"}
    clean = op(**tensors, **arguments)
    for cut in (1, 63, *range(64, L, 64), L - 1):
        worse = {**tensors, "input": tensors["input"].clone()}
        worse["input"][:, :, cut:] = poison
        for actual, expected in zip(op(**worse, **arguments), clean, strict=True):
            util.assert_same_bits(actual[:, :, :cut], expected[:, :, :cut])
        # Nor through gradients of the past, which no later token touches.
        leaf = worse["input"].requires_grad_()
        features, log_scale = op(leaf, tensors["projection"], **arguments)
        past = features[:, :, :cut].sum() + log_scale[:, :, :cut].sum()
        (grad,) = torch.autograd.grad(past, leaf)
        assert grad[:, :, :cut].isfinite().all()


@pytest.mark.parametrize("name", MAPS)
def test_where_nan_goes(name, device):
    """To the token; over the row or on to later tokens as the stabiliser says."""
    tensors = util.random_tensors(
        {"input": (2, 2, 150, 16), "projection": (2, 24, 16)}, torch.float32, device
    )
    arguments = MAPS[name]
    clean = util.results(op, tensors, arguments)
    at = 77
    tensors["input"][1, 0, at, 3] = math.nan
    found = util.results(op, tensors, arguments)
    spoiled = torch.zeros(2, 2, 150, dtype=torch.bool, device=device)
    spoiled[1, 0, at] = True
    if arguments["stabilizer"] == "row":
        spoiled[1, 0] = True
    elif arguments["stabilizer"] == "prefix":
        spoiled[1, 0, at:] = True
    assert found["output"][spoiled].isnan().all()
    # The maximum of a row or prefix has a gradient that the spoiled tokens change.
    same = {"output": ~spoiled, "lse": ~spoiled}
    if arguments["stabilizer"] in ("none", "token"):
        same["grad_input"] = ~spoiled
    for key, mask in same.items():
        if found[key].dim() == 4:
            mask = mask[..., None].expand(found[key].shape)
        util.assert_same_bits(found[key], clean[key], mask, key)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", STABILIZED)
def test_large_inputs(name, dtype, device):
    """The stabiliser keeps exponentials bounded, whatever the norm."""
    tensors = util.random_tensors(
        {"input": (2, 2, 70, 32), "projection": (2, 40, 32)}, dtype, device
    )
    tensors["input"] *= 50
    found = util.results(op, tensors, STABILIZED[name])
    for key, result in found.items():
        assert result.isfinite().all(), key
    assert found["output"].abs().max() <= 1


@pytest.mark.parametrize("name", STABILIZED)
def test_ties_share_as_in_torch(name, device):
    """Equal tokens and equal features: the gradient of the maximum is shared."""
    tensors = util.random_tensors(
        {"input": (1, 2, 9, 6), "projection": (2, 5, 6)}, torch.float64, device
    )
    # Numbers of few bits, so that sums are exact in any order.
    tensors = {name: (x * 8).round() / 8 for name, x in tensors.items()}
    tensors["input"][:, :, 4:7] = tensors["input"][:, :, 3:4]
    tensors["projection"][:, 3] = tensors["projection"][:, 1]
    arguments = {**STABILIZED[name], "scale": 0.5}
    gradients = util.output_gradients(*op(**tensors, **arguments))
    actual = util.results(op, tensors, arguments, gradients)
    expected = util.results(reference.random_features, tensors, arguments, gradients)
    util.assert_as_exact_as(actual, expected, expected, 64)
    # An initial value that ties with the maximum takes part.
    log_scale = op(**tensors, **arguments)[1]
    tensors["initial_log_scale"] = log_scale.amax(-1).clone()
    actual = util.results(op, tensors, arguments, gradients)
    expected = util.results(reference.random_features, tensors, arguments, gradients)
    util.assert_as_exact_as(actual, expected, expected, 64)


@pytest.mark.parametrize("cut", [1, 47, 48, 64, 129])
@pytest.mark.parametrize("kind", ["positive", "trigonometric"])
def test_continuation(kind, cut, device):
    """The rest of a sequence, begun with the last log scale: the same bits."""
    tensors = util.random_tensors(
        {"input": (2, 2, 130, 16), "projection": (2, 24, 16)}, torch.float32, device
    )
    arguments = {"kind": kind, "stabilizer": "prefix"}
    whole = op(**tensors, **arguments)
    projection = tensors["projection"]
    first = op(tensors["input"][:, :, :cut], projection, **arguments)
    last = op(
        tensors["input"][:, :, cut:],
        projection,
        **arguments,
        initial_log_scale=first[1][:, :, -1].contiguous(),
    )
    for parts, expected in zip(zip(first, last, strict=True), whole, strict=True):
        util.assert_same_bits(torch.cat(parts, 2), expected)


@pytest.mark.parametrize("name", MAPS)
def test_kernel_estimate(name, device):
    """Products of features estimate the kernel that the formula names."""
    generator = torch.Generator().manual_seed(0)
    x = 0.4 * torch.randn(1, 1, 6, 8, generator=generator, dtype=torch.float64)
    w = torch.randn(1, 60000, 8, generator=generator, dtype=torch.float64)
    x, w = x.to(device), w.to(device)
    features, m = op(x, w, **MAPS[name])
    product = (features @ features.mT)[0, 0]
    scale = m[0, 0].exp()
    product = product * scale[:, None] * scale
    scaled = x[0, 0] * 8**-0.25
    dot = scaled @ scaled.mT
    if name == "relu":
        norm = dot.diagonal().sqrt()
        angle = (dot / norm / norm[:, None]).clamp(-1, 1).acos()
        expected = norm * norm[:, None] / (2 * math.pi)
        expected = expected * (angle.sin() + (math.pi - angle) * angle.cos())
    elif name == "sincos":
        expected = (-torch.cdist(scaled, scaled).square() / 2).exp()
    else:
        expected = dot.exp()
    torch.testing.assert_close(product, expected, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("L", [0, 1, 2, 47, 48, 49, 67])
@pytest.mark.parametrize("stabilizer", ["none", "token", "row", "prefix"])
def test_sizes(L, stabilizer, device):
    tensors = util.random_tensors(
        {"input": (2, 2, L, 7), "projection": (1, 9, 7)}, torch.float64, device
    )
    arguments = {"stabilizer": stabilizer}
    actual = util.results(op, tensors, arguments)
    if L == 0:
        assert actual["output"].shape == (2, 2, 0, 9)
        assert not actual["grad_projection"].any()
        return
    gradients = util.output_gradients(actual["output"], actual["lse"])
    expected = TestRandomFeatures().twin(tensors, arguments, gradients)
    util.assert_as_exact_as(actual, expected, expected, 64)


def test_empty_axes(device):
    for B, H in ((0, 2), (2, 0)):
        tensors = {
            "input": torch.zeros(B, H, 3, 4, device=device),
            "projection": torch.zeros(2, 5, 4, device=device),
            "initial_log_scale": torch.zeros(B, H, device=device),
        }
        found = util.results(op, tensors, {"stabilizer": "row"})
        assert found["output"].shape == (B, H, 3, 5)
        assert not found["grad_projection"].any()


def test_output_has_the_layout_of_input(device):
    x = torch.randn(7, 2, 3, 4, device=device).permute(1, 2, 0, 3)  # [L, B, H * D]
    features, _ = op(x, torch.randn(3, 5, 4, device=device))
    assert features.permute(2, 0, 1, 3).is_contiguous()
