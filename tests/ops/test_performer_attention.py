"""Attention through random features."""

from typing import ClassVar

import pytest
import torch

from subquad import functional, reference
from tests import util
from tests.ops.mechanism_operator import HKV, B, D, L, M, MechanismOperator

R = 5


class TestPerformerAttention(MechanismOperator):
    public = ("performer_attention", "performer_attention_with_state")
    op = staticmethod(functional.performer_attention)
    op_with_state = staticmethod(functional.performer_attention_with_state)
    reference = staticmethod(reference.performer_attention_with_state)
    own: ClassVar = {
        "positive": {},
        "constants": {"eps": 1e-3, "floor": 0.01, "scale": 0.7},
        "trigonometric": {"kind": "trigonometric"},
        "relu": {"kind": "relu", "floor": 1e-2},
    }
    continuing = ("positive", "constants", "trigonometric", "relu")

    def more(self, dtype, device, heads=HKV, width=D):
        shape = {"projection": (heads, R, width)}
        return util.random_tensors(shape, dtype, device, seed=3)


def tensors(dtype=torch.float64, H=HKV, L=L):
    shape = {name: (B, H, L, D) for name in ("query", "key")}
    shape |= {"value": (B, H, L, M), "projection": (H, 64, D)}
    return util.random_tensors(shape, dtype)


def features(x, projection, maximum):
    """Queries' and keys' features as the paper's authors compute them."""
    p = x * D**-0.25 @ projection.mT
    n = x.square().sum(-1, keepdim=True) * D**-0.5 / 2
    return projection.shape[1] ** -0.5 * ((p - n - maximum(p)).exp() + 1e-4)


def test_all_keys():
    query, key, value, projection = tensors().values()
    q = features(query, projection, lambda p: p.amax(-1, keepdim=True))
    k = features(key, projection, lambda p: p.amax((-2, -1), keepdim=True))
    denominator = (q @ k.sum(-2)[..., None]).clamp(min=0.1)
    expected = q @ (k.mT @ value) / denominator
    output = functional.performer_attention(query, key, value, projection)
    torch.testing.assert_close(output, expected)


def test_earlier_keys():
    """Query by query: all that came before, relative to the maximum so far."""
    query, key, value, projection = tensors().values()
    output = functional.performer_attention(query, key, value, projection, causal=True)
    q = features(query, projection, lambda p: p.amax(-1, keepdim=True))
    tops = (key * D**-0.25 @ projection.mT).amax(-1).cummax(-1).values  # [B, H, L]
    k = features(key, projection, lambda p: tops[..., None])
    for i in range(L):
        past = slice(0, i + 1)
        decay = (tops[..., past] - tops[..., i, None]).exp()
        scores = (q[:, :, i : i + 1] @ k[:, :, past].mT)[:, :, 0] * decay
        expected = (scores[..., None] * value[:, :, past]).sum(-2)
        expected = expected / scores.sum(-1, keepdim=True).clamp(min=0.1)
        torch.testing.assert_close(output[:, :, i], expected)


@pytest.mark.parametrize("causal", [False, True])
def test_many_features_come_near_softmax_attention(causal):
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 1, 20, 4, dtype=torch.float64).unbind()
    query, key = query / 2, key / 2
    projection = torch.randn(1, 100000, 4, dtype=torch.float64)
    output = functional.performer_attention(
        query, key, value, projection, causal=causal, eps=0.0, floor=0.0
    )
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=causal
    )
    torch.testing.assert_close(output, expected, atol=0.05, rtol=0)


def test_gradients_through_the_maxima_can_be_stopped():
    values = tensors()
    found = []
    for gradient in (True, False):
        leaves = [x.detach().requires_grad_() for x in values.values()]
        output = functional.performer_attention(*leaves, stabilizer_gradient=gradient)
        found.append(torch.autograd.grad(output.sum(), leaves))
    assert not torch.equal(found[0][0], found[1][0])


def test_weights_are_those_of_linear_attention():
    query, key, value, projection = tensors().values()
    weight = functional.cosine_weights(
        torch.arange(L), max_length=L, dtype=torch.float64
    )
    options = {"query_weight": weight, "key_weight": weight, "causal": True}
    found = functional.performer_attention(query, key, value, projection, **options)
    expected = reference.performer_attention(query, key, value, projection, **options)
    torch.testing.assert_close(found, expected)


def test_complete_rows_can_be_looked_up():
    query, key, value, projection = tensors().values()
    none = key[:, :, :0]
    _, kv, k, log_scale = functional.performer_attention_with_state(
        none, key, value, projection
    )
    assert log_scale.numel() == 0
    output = functional.performer_attention_with_state(
        query, none, none[..., :M], projection, state_kv=kv, state_k=k
    )[0]
    expected = functional.performer_attention(query, key, value, projection)
    torch.testing.assert_close(output, expected)
    with pytest.raises(ValueError, match="takes no further keys, got 17"):
        functional.performer_attention_with_state(
            query, key, value, projection, state_kv=kv, state_k=k
        )


@pytest.mark.parametrize(
    ("spoiled", "error", "text"),
    [
        ({"query": torch.zeros(2, 6)}, ValueError, r"query must be \[B, H, L, D\]"),
        ({"key": torch.zeros(2, 6)}, ValueError, r"key must be \[B, Hkv, S, D\]"),
        ({"projection": torch.zeros(6)}, ValueError, r"projection must be \[Hkv, R"),
        ({"kind": "cosine"}, ValueError, "kind must be .* got 'cosine'"),
    ],
)
def test_errors(spoiled, error, text):
    with pytest.raises(error, match=text):
        functional.performer_attention(**{**tensors(torch.float32), **spoiled})
