"""Modules against their definitions."""

import math

import pytest
import torch

from subquad.nn import LocalAttention, MultiheadAttention
from tests.nn.util import FEW, HEADS, PATTERNS, WEIGHING, WIDTH, Pattern, close


def definition(module, query, key, see):
    """Softmax over the keys j with ``see(i, j)``, by loops, in float64.

    Returns output [L, B, C] and weights [B, L, S].
    """
    L, B, _ = query.shape
    S = key.shape[0]
    D = WIDTH // HEADS
    q, k, v = (
        projection(x).view(len(x), B, HEADS, D)
        for projection, x in (
            (module.q_proj, query),
            (module.k_proj, key),
            (module.v_proj, key),
        )
    )
    output, weights = torch.zeros(L, B, HEADS, D).to(q), torch.zeros(B, L, S).to(q)
    for i in range(L):
        seen = [j for j in range(S) if see(i, j)]
        if not seen:
            continue
        logits = torch.einsum("bhd,sbhd->bhs", q[i], k[seen]) / math.sqrt(D)
        probability = logits.softmax(-1)
        output[i] = torch.einsum("bhs,sbhd->bhd", probability, v[seen])
        weights[:, i, seen] = probability.mean(1)
    return module.out_proj(output.flatten(2)), weights


@pytest.mark.parametrize("window", [1, 5, 30])
@pytest.mark.parametrize(("L", "S"), [(13, 9), (9, 13), (1, 7), (7, 1)])
@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_local_attention_sees_its_window(window, L, S, cross, causal):
    pattern = Pattern("local", cross, causal, (("window_size", window),))
    module = pattern.build(torch.float64)
    query, key = pattern.inputs(L, S, dtype=torch.float64)
    S = len(key)

    def see(i, j):
        if not cross:
            return i - window < j <= i if causal else abs(i - j) <= window
        centre = i if causal else i * S // L
        return abs(centre - j) <= window

    expected, weights = definition(module, query, key, see)
    output, slots = module(query, key, need_weights=True)
    close(output, expected)
    width = window if causal and not cross else 2 * window + 1
    assert slots.shape == (query.size(1), L, width)
    for i in range(L):
        centre = i if causal or not cross else i * S // L
        first = centre - (window - 1 if causal and not cross else window)
        for slot in range(width):
            j = first + slot
            inside = 0 <= j < S
            close(
                slots[:, i, slot],
                weights[:, i, j] if inside else torch.zeros_like(slots[:, i, slot]),
            )


@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_softmax_attention_sees_all_or_the_past(cross, causal):
    pattern = Pattern("softmax", cross, causal)
    module = pattern.build(torch.float64)
    query, key = pattern.inputs(dtype=torch.float64)
    expected, weights = definition(
        module, query, key, lambda i, j: cross or not causal or j <= i
    )
    output, found = module(query, key, need_weights=True)
    close(output, expected)
    close(found, weights)


@pytest.mark.parametrize("add_bias_kv", [False, True])
@pytest.mark.parametrize("add_zero_attn", [False, True])
@pytest.mark.parametrize("kind", [None, "bool", "float", "heads"])
def test_softmax_attention_equals_that_of_torch(add_bias_kv, add_zero_attn, kind):
    options = {"add_bias_kv": add_bias_kv, "add_zero_attn": add_zero_attn}
    pattern = Pattern("softmax", True, False, tuple(options.items()))
    module = pattern.build(torch.float64, kdim=WIDTH, vdim=WIDTH)
    twin = torch.nn.MultiheadAttention(WIDTH, HEADS, dtype=torch.float64, **options)
    parameters = module.state_dict()
    state = {
        "out_proj.weight": parameters["out_proj.weight"],
        "out_proj.bias": parameters["out_proj.bias"],
    }
    for kind_of in ("weight", "bias"):
        stacked = [parameters[f"{letter}_proj.{kind_of}"] for letter in "qkv"]
        state[f"in_proj_{kind_of}"] = torch.cat(stacked)
    state |= {name: parameters[name] for name in ("bias_k", "bias_v") if add_bias_kv}
    twin.load_state_dict(state)
    query, key = pattern.inputs(dtype=torch.float64)
    padding = torch.zeros(3, 9, dtype=torch.bool)
    padding[0, :2] = padding[1, [3, 8]] = True
    mask = {
        None: None,
        "bool": torch.rand(13, 9) < 0.3,
        "float": torch.randn(13, 9).double(),
        "heads": torch.randn(3 * HEADS, 13, 9).double(),
    }[kind]
    # torch wants both masks of one kind.
    twin_padding = padding
    if mask is not None and mask.is_floating_point():
        twin_padding = torch.zeros(3, 9).double().masked_fill(padding, -math.inf)
    expected = twin(query, key, key, twin_padding, attn_mask=mask)
    output, weights = module(
        query, key, key_padding_mask=padding, attn_mask=mask, need_weights=True
    )
    close(output, expected[0])
    close(weights, expected[1])


def test_a_query_that_a_mask_leaves_without_keys_gives_zero_and_no_gradient():
    module = MultiheadAttention(WIDTH, HEADS)
    query = torch.randn(5, 2, WIDTH, requires_grad=True)
    mask = torch.zeros(5, 5, dtype=torch.bool)
    mask[3] = True
    for attn_mask in (mask, torch.zeros(5, 5).masked_fill(mask, -math.inf)):
        output, weights = module(query, attn_mask=attn_mask, need_weights=True)
        assert torch.equal(output[3], module.out_proj.bias.expand(2, -1))
        assert not weights[:, 3].any()
        (gradient,) = torch.autograd.grad(output.sum() + weights.sum(), query)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("pattern", WEIGHING, ids=str)
def test_weights_of_heads_and_their_mean(pattern):
    module = pattern.build()
    query, key = pattern.inputs(13, 13)
    output, mean = module(query, key, need_weights=True)
    same, heads = module(query, key, need_head_weights=True)
    close(same, output)
    assert heads.shape[:3] == (HEADS, 3, 13)
    close(heads.mean(0), mean)
    close(heads.sum(-1), torch.ones(HEADS, 3, 13))
    close(module(query, key)[0], output)
    assert module(query, key)[1] is None


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_batch_first_is_a_transpose(pattern):
    module, twin = pattern.build(), pattern.build(batch_first=True)
    query, key = pattern.inputs()
    expected, _ = module(query, key)
    output, _ = twin(query.transpose(0, 1), key.transpose(0, 1))
    close(output.transpose(0, 1), expected)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_a_row_alone_equals_the_row_in_a_batch(pattern):
    module = pattern.build()
    query, key = pattern.inputs()
    output, _ = module(query, key)
    for b in range(3):
        row = slice(b, b + 1)
        alone = query[:, row]
        other = key[:, row] if pattern.cross else alone
        close(module(alone, other)[0], output[:, row], 2e-6)


@pytest.mark.parametrize("pattern", FEW, ids=str)
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str
)
def test_dtypes(pattern, dtype):
    module = pattern.build(dtype)
    query, key = pattern.inputs(dtype=dtype)
    output, weights = module(query, key, need_weights=pattern.weighs)
    assert output.dtype == dtype
    exact = pattern.build(torch.float64)
    exact.load_state_dict(module.state_dict())
    expected, expected_weights = exact(
        query.double(), key.double(), need_weights=pattern.weighs
    )
    tolerance = 64 * torch.finfo(dtype).eps
    torch.testing.assert_close(output.double(), expected, atol=tolerance, rtol=0)
    if weights is not None:
        torch.testing.assert_close(
            weights.double(), expected_weights, atol=tolerance, rtol=0
        )
    output.sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("pattern", FEW, ids=str)
def test_autocast(pattern):
    module = pattern.build()
    query, key = pattern.inputs()
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = module(query, key)
    assert output.dtype == torch.bfloat16
    close(output.float(), module(query, key)[0], 0.1)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize(("L", "S"), [(0, 5), (1, 1), (5, 0)])
def test_short_sequences(pattern, L, S):
    module = pattern.build()
    query, key = pattern.inputs(L, S)
    output, _ = module(query, key)
    assert output.shape == (L, 3, WIDTH)
    if len(key) == 0:
        assert torch.equal(output, module.out_proj.bias.expand(L, 3, -1))


@pytest.mark.parametrize("pattern", FEW, ids=str)
def test_dropout(pattern):
    module = pattern.build(dropout=0.5, **pattern.steady)
    query, key = pattern.inputs()
    exact, _ = pattern.build(**pattern.steady)(query, key)
    close(module(query, key)[0], exact)
    module.train()
    # One row many times over: as many draws in one call.
    query = query[:, :1].expand(-1, 1000, -1)
    key = key[:, :1].expand(-1, 1000, -1) if pattern.cross else query
    torch.manual_seed(5)
    output, _ = module(query, key)
    assert not torch.equal(output[:, 0], output[:, 1])
    torch.testing.assert_close(output.mean(1), exact[:, 0], atol=0.25, rtol=0)
    assert not torch.equal(module(query, key)[0], output)
    torch.manual_seed(5)
    assert torch.equal(module(query, key)[0], output)


def test_key_and_value_of_other_widths():
    module = LocalAttention(WIDTH, HEADS, kdim=10, vdim=6, cross=True)
    query = torch.randn(5, 2, WIDTH)
    output, _ = module(query, torch.randn(7, 2, 10), torch.randn(7, 2, 6))
    assert output.shape == query.shape


def test_projections_are_views():
    module = LocalAttention(WIDTH, HEADS)
    projected = torch.randn(5, 2, WIDTH)
    for batch_first in (False, True):
        heads = module._split(projected, HEADS, batch_first)
        assert heads.data_ptr() == projected.data_ptr()
        merged = module._merge(heads, batch_first)
        assert merged.data_ptr() == projected.data_ptr()
        assert torch.equal(merged, projected)
