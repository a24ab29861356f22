"""Linear attention: its definitions, its buckets and its state."""

import math

import pytest
import torch

from subquad import UnsupportedPattern
from subquad.nn import LinearAttention, module_from_args
from tests.nn.test_registry import parse
from tests.nn.util import HEADS, WIDTH, Pattern, close, decode

L, B, D = 23, 3, WIDTH // HEADS
BUCKETS = [1, 2, 5, 30]


def build(dtype=torch.float32, **options):
    flags = {key: options.pop(key, False) for key in ("cross", "causal")}
    return Pattern("linear", **flags, options=tuple(options.items())).build(dtype)


def projected(module, query, key):
    """q [B, H, L, D], k and v [B, H, S, D]."""
    heads = (
        (module.q_proj(query), HEADS),
        (module.k_proj(key), module.num_kv_heads),
        (module.v_proj(key), module.num_kv_heads),
    )
    q, k, v = (module._split(x, count, False) for x, count in heads)
    group = HEADS // module.num_kv_heads
    return q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)


def finish(module, output):
    return module.out_proj(module._merge(output, False))


@pytest.mark.parametrize("kv_heads", [HEADS, 2, 1])
@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_all_keys(cross, causal, kv_heads):
    if causal and not cross:
        pytest.skip("sees the past")
    module = build(torch.float64, cross=cross, causal=causal, num_kv_heads=kv_heads)
    query = torch.randn(L, B, WIDTH, dtype=torch.float64)
    key = torch.randn(9, B, WIDTH, dtype=torch.float64) if cross else query
    q, k, v = projected(module, query, key)
    weights = q.softmax(-1) @ k.softmax(2).mT / math.sqrt(D)
    close(module(query, key)[0], finish(module, weights @ v))


@pytest.mark.parametrize("bucket", BUCKETS)
@pytest.mark.parametrize("kv_heads", [HEADS, 2])
def test_the_past(bucket, kv_heads):
    module = build(
        torch.float64, causal=True, blindspot_size=bucket, num_kv_heads=kv_heads
    )
    query = torch.randn(L, B, WIDTH, dtype=torch.float64)
    q, k, v = projected(module, query, query)
    output = torch.zeros_like(q)
    for i in range(L):
        end = i + 1 if bucket == 1 else i // bucket * bucket
        weights = q[:, :, i].softmax(-1)[:, :, None] @ k[:, :, :end].exp().mT
        weights = weights / math.sqrt(D)  # [B, H, 1, end]
        total = weights.sum(-1, keepdim=True).clamp(min=1e-3)
        output[:, :, i] = (weights / total @ v[:, :, :end])[:, :, 0]
    close(module(query)[0], finish(module, output))


def test_the_least_denominator():
    module = build(torch.float64, causal=True, eps=1e6)
    query = torch.randn(L, B, WIDTH, dtype=torch.float64)
    q, k, v = projected(module, query, query)
    weights = (q.softmax(-1) @ k.exp().mT).tril() / math.sqrt(D) / 1e6
    close(module(query)[0], finish(module, weights @ v), 1e-12)


@pytest.mark.parametrize("bucket", BUCKETS)
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_what_is_not_seen_changes_no_bit(bucket, poison):
    module = build(causal=True, blindspot_size=bucket)
    query = torch.randn(L, B, WIDTH)
    expected, _ = module(query)
    for cut in range(L):
        poisoned = query.clone()
        poisoned[cut:] = poison
        output, _ = module(poisoned)
        assert torch.equal(output[:cut], expected[:cut]), cut


CUTS = [[L], [1] * L, [4, 1, 1, 17], [6, 0, 11, 6]]


@pytest.mark.parametrize("cuts", CUTS, ids=str)
@pytest.mark.parametrize("kind", ["none", "left", "scattered", "late"])
@pytest.mark.parametrize("bucket", BUCKETS)
def test_steps_equal_the_parallel_form(bucket, kind, cuts):
    module = build(causal=True, blindspot_size=bucket, num_kv_heads=2)
    query = torch.randn(L, B, WIDTH)
    mask = torch.zeros(B, L, dtype=torch.bool)
    if kind == "left":
        mask[0, :5] = mask[1, :2] = True
    elif kind == "scattered":
        mask[0, [0, 3, 4, 5, 6, 11]] = mask[1, [1, 2, 12]] = mask[2] = True
    elif kind == "late":
        mask[0, 8:] = mask[2, 5] = True
    padding = None if kind == "none" else mask
    expected, _ = module(query, key_padding_mask=padding)
    close(decode(module, query, cuts, padding=padding), expected)


@pytest.mark.parametrize("bucket", [1, 4])
def test_masks_may_come_and_go_and_rows_change_places(bucket):
    module = build(causal=True, blindspot_size=bucket)
    query = torch.randn(L, B, WIDTH)
    mask = torch.zeros(B, L, dtype=torch.bool)
    mask[1, 4:6] = mask[2, 9] = True
    order = torch.tensor([2, 2, 0, 1])
    state, outputs = {}, []
    for t in range(L):
        if t == 11:
            module.reorder_incremental_state(state, order)
            outputs = [output[:, order] for output in outputs]
            query, mask = query[:, order], mask[order]
        step = mask[:, t : t + 1]
        options = {"key_padding_mask": step} if step.any() else {}
        outputs.append(module(query[t : t + 1], incremental_state=state, **options)[0])
    close(torch.cat(outputs), module(query, key_padding_mask=mask)[0])


@pytest.mark.parametrize("bucket", [1, 4])
@pytest.mark.parametrize("padded", [False, True])
def test_the_state_is_bounded(bucket, padded):
    module = build(causal=True, blindspot_size=bucket)
    state = {}
    for count in (50, *[1] * 12, 30):
        mask = torch.rand(2, count) < 0.3 if padded else None
        module(
            torch.randn(count, 2, WIDTH),
            key_padding_mask=mask,
            incremental_state=state,
        )
        bound = {
            "prev_sum_kv": 2 * WIDTH * D,
            "prev_sum_k": 2 * WIDTH,
            "prev_key": 2 * (bucket - 1) * WIDTH,
            "prev_value": 2 * (bucket - 1) * WIDTH,
            "prev_key_padding_mask": 2 * (bucket - 1),
            "prev_position": 2,
        }
        for name, tensor in module._get_input_buffer(state).items():
            if tensor is not None:
                assert tensor.size(0) == 2, name
                assert tensor.numel() <= bound[name], name
                storage = tensor.untyped_storage().nbytes() / tensor.element_size()
                assert storage <= 2 * bound[name], name


def test_a_prefix_may_be_shorter_than_a_bucket():
    module = build(causal=True, blindspot_size=8)
    query = torch.randn(L, B, WIDTH)
    state = {}
    output = decode(module, query[:3], [3], state=state)
    assert torch.equal(output, module.out_proj.bias.expand_as(output))
    assert state[module.name]["prev_key"].size(2) == 3
    close(decode(module, query[3:], [20], state=state), module(query)[0][3:])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_state_is_in_float32(dtype):
    module = build(dtype, causal=True)
    exact = build(torch.float64, causal=True)
    exact.load_state_dict(module.state_dict())
    query = torch.randn(1000, 1, WIDTH).to(dtype)
    state = {}
    output = decode(module, query, [1] * 1000, state=state)
    for name in ("prev_sum_kv", "prev_sum_k"):
        assert state[module.name][name].dtype == torch.float32
    expected, _ = exact(query.double())
    # As far apart at the end as one rounding of a result, not of a sum.
    tolerance = 16 * torch.finfo(dtype).eps
    torch.testing.assert_close(output.double(), expected, atol=tolerance, rtol=0)


def test_four_thousand_steps():
    module = build(causal=True)
    query = torch.randn(4096, 1, WIDTH)
    with torch.no_grad():
        close(decode(module, query, [1] * 4096), module(query)[0])


@pytest.mark.parametrize("causal", [False, True])
def test_a_memory_is_kept_as_one_sum(causal):
    module = build(cross=True, causal=causal, num_kv_heads=2)
    query, key = torch.randn(L, B, WIDTH), torch.randn(500, B, WIDTH)
    padding = torch.zeros(B, 500, dtype=torch.bool)
    padding[0, 100:] = padding[1, ::3] = True
    state = {}
    output = decode(module, query, [4, *[1] * 19], key, padding, state)
    close(output, module(query, key, key_padding_mask=padding)[0])
    kept = module._get_input_buffer(state)
    assert sum(x.numel() for x in kept.values() if x is not None) < B * 2 * D * (D + 2)


def test_large_numbers():
    for options in ({}, {"causal": True}):
        module = build(**options)
        with torch.no_grad():
            for projection in (module.q_proj, module.k_proj):
                projection.weight.zero_()
                projection.bias.copy_(torch.linspace(-50, 50, WIDTH))
        query = torch.randn(200, 1, WIDTH)
        output, _ = module(query.requires_grad_())
        output.sum().backward()
        assert output.isfinite().all()
        assert query.grad.isfinite().all()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"blindspot_size": 0, "causal": True}, "must be at least 1, got 0"),
        ({"blindspot_size": 2}, "needs causal self-attention, got 2"),
        (
            {"blindspot_size": 2, "causal": True, "cross": True},
            "needs causal self-attention, got 2",
        ),
        ({"eps": -1.0}, "eps must not be negative, got -1.0"),
        ({"eps": math.nan}, "eps must not be negative, got nan"),
    ],
)
def test_constructor(options, text):
    with pytest.raises(ValueError, match=f"^LinearAttention: .*{text}"):
        LinearAttention(WIDTH, HEADS, **options)


def test_what_it_cannot_do():
    query = torch.randn(5, 2, WIDTH)
    with pytest.raises(UnsupportedPattern, match="decoding needs causal=True"):
        LinearAttention(WIDTH, HEADS)(query, incremental_state={})
    for options in ({"need_weights": True}, {"need_head_weights": True}):
        with pytest.raises(UnsupportedPattern, match="need_weights is not supported"):
            LinearAttention(WIDTH, HEADS)(query, **options)
    with pytest.raises(UnsupportedPattern, match="attn_mask is not supported"):
        LinearAttention(WIDTH, HEADS)(query, attn_mask=torch.zeros(5, 5))


def test_flags_and_repr():
    arguments = parse(LinearAttention, ["--blindspot-size", "7", "--eps", "0.5"])
    module = module_from_args("linear", arguments, 32, 4, causal=True)
    assert (module.blindspot_size, module.eps) == (7, 0.5)
    assert "blindspot_size=7, eps=0.5, num_heads=4, causal=True" in repr(module)
    default = module_from_args("linear", parse(LinearAttention, []), 32, 4)
    assert default.blindspot_size == LinearAttention(32, 4).blindspot_size == 1
    assert default.eps == LinearAttention(32, 4).eps
