"""Performer: its feature maps, their directions, and long decoding."""

import copy
import io

import pytest
import torch
from torch.nn import functional as F

from subquad.nn import Performer
from subquad.nn.performer import draw_directions
from tests.nn.util import HEADS, WIDTH, close, decode

D = WIDTH // HEADS
METHODS = {
    "favorp": 16,
    "relu": 16,
    "fourier": 16,
    "dpfp": 2 * D,
    "relu-only": 16,
    "sigmoid-only": 16,
    "mlp-fourier": 10,
}
RANDOM = ("favorp", "relu", "fourier")


def build(method="favorp", **options):
    torch.manual_seed(0)
    options = {"approx_attn_dim": METHODS[method], "proj_method": method, **options}
    return Performer(WIDTH, HEADS, **options).double().eval()


def features(module, x, of_keys):
    """phi of tokens [B, H, L, D], as the papers and their authors' programs say."""
    method, R = module.proj_method, module.approx_attn_dim
    if method == "dpfp":
        y = torch.cat([x.relu(), (-x).relu()], -1)
        rolls = range(1, R // D // 2 + 1)
        return torch.cat([y * y.roll(j, -1) for j in rolls], -1)
    if method == "relu-only":
        return x.relu() + 0.1
    if method == "sigmoid-only":
        return x.sigmoid() + 0.1
    if method == "mlp-fourier":
        own = module.feature_proj
        u = x @ own.random_proj.mT
        inputs = torch.cat([u.cos(), u.sin()], -1) * D**-0.5
        return F.linear(inputs, own.phi[0].weight, own.phi[0].bias).relu()
    p = D**-0.25 * x @ module.eval_proj.mT
    n = D**-0.5 * x.square().sum(-1, keepdim=True) / 2
    axes = (-2, -1) if of_keys else -1
    if method == "favorp":
        m = p.amax(axes, keepdim=True)
        return R**-0.5 * ((p - n - m).exp() + 1e-4)
    if method == "relu":
        return (R**-0.5 * p).relu() + 1e-3
    return R**-0.5 * torch.cat([p.sin(), p.cos()], -1) * (n - n.amax(axes, True)).exp()


@pytest.mark.parametrize("cos_weighting", [False, True])
@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_feature_maps(method, cross, cos_weighting):
    module = build(method, cross=cross, cos_weighting=cos_weighting)
    query = torch.randn(13, 3, WIDTH, dtype=torch.float64)
    key = torch.randn(9, 3, WIDTH, dtype=torch.float64) if cross else query
    q, k, v = (
        projection(x).view(len(x), 3, HEADS, D).permute(1, 2, 0, 3)
        for projection, x in (
            (module.q_proj, query),
            (module.k_proj, key),
            (module.v_proj, key),
        )
    )
    scores = features(module, q, False) @ features(module, k, True).mT
    if cos_weighting:
        distance = torch.arange(13)[:, None] - torch.arange(len(key))
        scores = scores * (torch.pi / 2 * distance.double() / 13).cos()
    floor = 0.1 if method == "favorp" else 0.01
    expected = scores @ v / scores.sum(-1, keepdim=True).clamp(min=floor)
    expected = module.out_proj(expected.permute(2, 0, 1, 3).flatten(2))
    close(module(query, key)[0], expected)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_every_parameter_learns(method, causal):
    schemes = ("default", "learnable") if method in RANDOM else ("default",)
    for scheme in schemes:
        module = build(method, sample_scheme=scheme, causal=causal).train()
        module(torch.randn(13, 3, WIDTH).double())[0].square().sum().backward()
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any() or name == "k_proj.bias", name


def test_directions_by_scheme():
    query = torch.randn(13, 3, WIDTH).double()
    module = build()
    assert set(dict(module.named_buffers())) == {"eval_proj"}
    assert module.eval_proj.shape == (HEADS, 16, D)
    assert torch.equal(module(query)[0], module(query)[0])
    module.train()
    first = module(query)[0]
    assert not torch.equal(module(query)[0], first)
    torch.manual_seed(3)
    one = module(query)[0]
    torch.manual_seed(3)
    assert torch.equal(module(query)[0], one)

    module = build(sample_scheme="fixed").train()
    assert set(dict(module.named_buffers())) == {"random_proj"}
    assert torch.equal(module(query)[0], module(query)[0])
    module = build(sample_scheme="learnable").train()
    assert isinstance(module.random_proj, torch.nn.Parameter)
    assert torch.equal(module(query)[0], module(query)[0])


def test_grouped_heads_share_their_directions():
    module = build(num_kv_heads=2)
    assert module.eval_proj.shape == (2, 16, D)


@pytest.mark.parametrize("features", [4, 6, 16])
def test_orthogonal_directions(features):
    torch.manual_seed(0)
    like = torch.zeros(1, dtype=torch.float64)
    drawn = draw_directions(3, features, 6, True, like)
    assert drawn.shape == (3, features, 6)
    for block in drawn.split(6, 1):
        products = block @ block.mT
        diagonal = torch.diag_embed(products.diagonal(dim1=-2, dim2=-1))
        torch.testing.assert_close(products, diagonal)
    # Lengths of normal vectors: their mean square is the width.
    many = draw_directions(200, features, 6, True, like)
    assert abs(many.square().sum(-1).mean() / 6 - 1) < 0.1


def test_order_of_the_draws():
    """Head by head: the blocks, then the vectors that give the lengths."""
    torch.manual_seed(4)
    drawn = draw_directions(2, 8, 6, True, torch.zeros(1))
    torch.manual_seed(4)
    for head in drawn:
        one, two = (torch.linalg.qr(torch.randn(6, 6))[0].t() for _ in range(2))
        lengths = torch.randn(8, 6).norm(dim=1, keepdim=True)
        torch.testing.assert_close(head, torch.cat([one, two[:2]]) * lengths)


@pytest.mark.parametrize("train_draws", ["gaussian", "orthogonal"])
@pytest.mark.parametrize("eval_draws", ["gaussian", "orthogonal"])
def test_draws_by_choice(train_draws, eval_draws, monkeypatch):
    drawn = []

    def spy(heads, features, width, orthogonal, like):
        drawn.append(orthogonal)
        return draw_directions(heads, features, width, orthogonal, like)

    monkeypatch.setattr("subquad.nn.performer.draw_directions", spy)
    module = build(train_draws=train_draws, eval_draws=eval_draws).train()
    module(torch.randn(5, 1, WIDTH).double())
    assert drawn == [eval_draws == "orthogonal", train_draws == "orthogonal"]


def test_redraw():
    for scheme in ("default", "fixed", "learnable"):
        module = build(sample_scheme=scheme)
        name = "eval_proj" if scheme == "default" else "random_proj"
        directions = getattr(module, name)
        before = directions.clone()
        module.redraw()
        assert getattr(module, name) is directions
        assert not torch.equal(directions, before)
    with pytest.raises(ValueError, match="dpfp has no random directions"):
        build("dpfp").redraw()


@pytest.mark.parametrize("scheme", ["default", "fixed"])
def test_checkpoints_with_and_without_directions(scheme):
    module, twin = build(sample_scheme=scheme), build(sample_scheme=scheme)
    twin.redraw()
    query = torch.randn(5, 1, WIDTH).double()
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    buffer.seek(0)
    twin.load_state_dict(torch.load(buffer))
    assert torch.equal(twin(query)[0], module(query)[0])
    name = "eval_proj" if scheme == "default" else "random_proj"
    whole = torch.nn.ModuleDict({"attention": twin})
    state = {k: v for k, v in whole.state_dict().items() if name not in k}
    before = getattr(twin, name).clone()
    whole.load_state_dict(state)
    assert torch.equal(getattr(twin, name), before)
    del state["attention.q_proj.weight"]
    with pytest.raises(RuntimeError, match=r"Missing key.*attention.q_proj.weight"):
        whole.load_state_dict(state)
    learnable = build(sample_scheme="learnable")
    with pytest.raises(RuntimeError, match=r"Missing key.*random_proj"):
        learnable.load_state_dict(build("relu-only").state_dict())


def test_directions_move_with_the_module():
    module = copy.deepcopy(build()).to(torch.bfloat16)
    assert module.eval_proj.dtype == torch.bfloat16
    assert module.to("meta").eval_proj.device.type == "meta"


@pytest.mark.parametrize("method", ["favorp", "fourier", "mlp-fourier"])
def test_steps_in_training_take_the_directions_that_are_kept(method):
    module = build(method, causal=True).train()
    query = torch.randn(9, 2, WIDTH).double()
    close(decode(module, query, [1] * 9), module.eval()(query)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("method", ["favorp", "relu", "mlp-fourier"])
def test_thousands_of_steps(method, dtype):
    """A prefix and steps equal the whole after 4096 tokens."""
    module = build(method, approx_attn_dim=8, causal=True).to(dtype)
    query = torch.randn(4096, 1, WIDTH).to(dtype)
    state = {}
    with torch.no_grad():
        expected = module(query)[0]
        found = decode(module, query, [2048, *[1] * 2048], state=state)
    buffer = module._get_input_buffer(state)
    sums = [buffer["prev_sum_kv"], buffer["prev_sum_k"]]
    assert {x.dtype for x in sums} == {torch.float32}
    if dtype == torch.float32:
        close(found, expected)
    else:  # of one rounding of the output, not of 4096
        torch.testing.assert_close(found, expected, atol=1e-2, rtol=2**-7)


@pytest.mark.parametrize("cross", [False, True])
def test_the_state_is_of_constant_size(cross):
    module = build(causal=True, cross=cross, num_kv_heads=2).float()
    state, sizes = {}, []
    key = torch.randn(300, 2, WIDTH) if cross else None
    for count in (50, 1, 30, 1):
        decode(module, torch.randn(count, 2, WIDTH), [count], key, state=state)
        buffer = module._get_input_buffer(state)
        tensors = [x for x in buffer.values() if x is not None]
        assert all(len(x) == 2 for x in tensors)
        sizes.append(sum(x.untyped_storage().nbytes() for x in tensors))
    assert len(set(sizes)) == 1
    assert sizes[0] <= 4 * 2 * 2 * (16 * D + 16 + 1) + 8 * 2


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"proj_method": "favor"}, "proj_method must be one of favorp, .* got 'favor'"),
        ({"sample_scheme": "x"}, "sample_scheme must be one of default, .* got 'x'"),
        ({"train_draws": "x"}, "train_draws must be one of gaussian, .* got 'x'"),
        ({"eval_draws": "x"}, "eval_draws must be one of gaussian, .* got 'x'"),
        ({"approx_attn_dim": 0}, "of favorp must be at least 1, got 0"),
        (
            {"proj_method": "dpfp", "approx_attn_dim": 2 * D - 1},
            f"of dpfp must be at least {2 * D}, got {2 * D - 1}",
        ),
        (
            {"proj_method": "mlp-fourier", "approx_attn_dim": 7},
            "of mlp-fourier must be even, got 7",
        ),
        ({"max_length": 9}, "max_length needs cos_weighting=True, got 9"),
        ({"max_length": 0, "cos_weighting": True}, "must be at least 1, got 0"),
    ],
)
def test_options(options, text):
    with pytest.raises(ValueError, match=f"^Performer: .*{text}"):
        Performer(WIDTH, HEADS, **options)


def test_repr():
    module = Performer(
        WIDTH,
        HEADS,
        proj_method="relu",
        sample_scheme="fixed",
        cos_weighting=True,
        max_length=9,
        causal=True,
    )
    expected = (
        "approx_attn_dim=16, proj_method='relu', sample_scheme='fixed', "
        "cos_weighting=True, max_length=9, num_heads=4, causal=True"
    )
    assert module.extra_repr() == expected
