"""cosFormer's attention and the weights of its positions."""

import math
from typing import ClassVar

import pytest
import torch

from subquad import functional, reference
from tests import util
from tests.ops.mechanism_operator import HKV, B, D, L, M, MechanismOperator


class TestCosformerAttention(MechanismOperator):
    public = ("cosformer_attention", "cosformer_attention_with_state")
    op = staticmethod(functional.cosformer_attention)
    op_with_state = staticmethod(functional.cosformer_attention_with_state)
    reference = staticmethod(reference.cosformer_attention_with_state)
    own: ClassVar = {
        "relu": {},
        "elu": {"activation": "elu", "floor": 0.1},
        "max-length": {"max_length": 300},
    }
    continuing = ("max-length",)
    dtypes = (torch.float32, torch.bfloat16)

    def more(self, dtype, device, heads=HKV, width=D):
        return {}

    def place(self, begin, count, device):
        return {"query_position": torch.arange(begin, begin + count, device=device)}


def tensors(L=L, S=L, dtype=torch.float64):
    shape = {"query": (B, HKV, L, D), "key": (B, HKV, S, D), "value": (B, HKV, S, M)}
    return util.random_tensors(shape, dtype)


@pytest.mark.parametrize("S", [L, 9, 30])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("activation", ["relu", "elu"])
@pytest.mark.parametrize("max_length", [None, 50])
def test_products_weighted_by_the_cosine(S, causal, activation, max_length):
    if causal and S != L:
        pytest.skip("causal queries are the keys")
    query, key, value = tensors(S=S).values()
    q, k = query.relu(), key.relu()
    if activation == "elu":
        q = 1 + torch.nn.functional.elu(query)
        k = 1 + torch.nn.functional.elu(key)
    m = max(L, S) if max_length is None else max_length
    distance = torch.arange(L)[:, None] - torch.arange(S)
    scores = q @ k.mT * (math.pi / 2 * distance.double() / m).cos()
    if causal:
        scores = scores.tril()
    expected = scores @ value / scores.sum(-1, keepdim=True).clamp(min=1e-6)
    output = functional.cosformer_attention(
        query,
        key,
        value,
        causal=causal,
        activation=activation,
        max_length=max_length,
    )
    torch.testing.assert_close(output, expected)


def test_only_the_distance_matters():
    query, key, value = tensors().values()
    expected = functional.cosformer_attention(query, key, value, max_length=99)
    position = torch.arange(L) + 40
    output = functional.cosformer_attention(
        query,
        key,
        value,
        max_length=99,
        query_position=position,
        key_position=position.expand(B, -1),
    )
    torch.testing.assert_close(output, expected)
    # When causal, one of the two serves both.
    expected = functional.cosformer_attention(
        query, key, value, max_length=99, causal=True
    )
    for name in ("query_position", "key_position"):
        output = functional.cosformer_attention(
            query, key, value, max_length=99, causal=True, **{name: position}
        )
        torch.testing.assert_close(output, expected)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"activation": "tanh"}, "activation must be 'relu' or 'elu', got 'tanh'"),
        ({"max_length": 0}, "max_length must be positive, got 0"),
        ({"max_length": -3}, "max_length must be positive, got -3"),
        ({"query": torch.zeros(2, 3)}, r"query must be \[B, H, L, D\], got 2"),
        ({"key": torch.zeros(2, 3)}, r"key must be \[B, Hkv, S, D\], got 2"),
    ],
)
def test_errors(options, text):
    with pytest.raises(ValueError, match=f"^cosformer_attention: {text}"):
        functional.cosformer_attention(**{**tensors(), **options})


def test_positions_beyond_the_longest_sequence_are_refused():
    values = tensors()
    functional.cosformer_attention(**values, max_length=L)
    with pytest.raises(ValueError, match="less than max_length = 16, got 16"):
        functional.cosformer_attention(**values, max_length=L - 1)
    with pytest.raises(ValueError, match="less than max_length = 40, got 41"):
        functional.cosformer_attention(
            **values, max_length=40, query_position=torch.arange(L) + 25
        )
    compiled = torch.compile(
        functional.cosformer_attention, fullgraph=True, backend="aot_eager"
    )
    with pytest.raises(ValueError, match="less than max_length = 16, got 16"):
        compiled(**values, max_length=L - 1)


POSITIONS = [torch.arange(7), torch.arange(14).view(2, 7).flip(1)]
LIMITS = [
    {"max_length": 20},
    {"lengths": torch.tensor([7, 0])},
    {"lengths": torch.arange(14).view(2, 7)},
]


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("limit", range(3))
@pytest.mark.parametrize("position", range(2))
def test_cosine_weights(position, limit, dtype):
    place, options = POSITIONS[position], LIMITS[limit]
    expected = reference.cosine_weights(place, **options, dtype=dtype)
    found = functional.cosine_weights(place, **options, dtype=dtype)
    assert found.dtype == (dtype or torch.float32)
    torch.testing.assert_close(found, expected)
    op = torch.ops.subquad.cosine_weights.default
    torch.library.opcheck(op, (place,), {**options, "dtype": dtype})
    meta = {k: v.to("meta") if torch.is_tensor(v) else v for k, v in options.items()}
    shape = functional.cosine_weights(place.to("meta"), **meta, dtype=dtype).shape
    assert shape == found.shape


@pytest.mark.parametrize(
    ("position", "options", "error", "text"),
    [
        (torch.zeros(3), {"max_length": 3}, TypeError, "position must be int64"),
        (torch.tensor(1), {"max_length": 3}, ValueError, r"\[N\] or \[B, N\], got 0"),
        (POSITIONS[0], {}, ValueError, "either max_length or lengths .* got none"),
        (
            POSITIONS[0],
            {"max_length": 9, "lengths": torch.tensor([9])},
            ValueError,
            "either max_length or lengths must be given, got both",
        ),
        (POSITIONS[0], {"max_length": 0}, ValueError, "must be positive, got 0"),
        (POSITIONS[0], {"lengths": torch.ones(2)}, TypeError, "lengths must be int64"),
        (
            POSITIONS[0],
            {"lengths": torch.tensor(2)},
            ValueError,
            r"lengths must be \[B\] or \[B, N\], got 0",
        ),
        (
            POSITIONS[1],
            {"lengths": torch.tensor([1, 2, 3])},
            ValueError,
            "axis 0 of lengths must be B = 2, got 3",
        ),
        (
            POSITIONS[0],
            {"lengths": torch.ones(1, 3, dtype=torch.int64)},
            ValueError,
            "axis 1 of lengths must be N = 7, got 3",
        ),
        (
            POSITIONS[0],
            {"max_length": 9, "dtype": torch.half},
            TypeError,
            "dtype must be float32 or float64, got Half",
        ),
    ],
)
def test_errors_of_cosine_weights(position, options, error, text):
    for device in ("cpu", "meta"):
        given = {
            k: v.to(device) if torch.is_tensor(v) else v for k, v in options.items()
        }
        with pytest.raises(error, match=f"^cosine_weights: .*{text}"):
            functional.cosine_weights(position.to(device), **given)
