"""Errors of window attention: op, rule and value, the same from CPU and Meta."""

import re

import pytest
import torch

from subquad import functional


def good():
    """A call with every tensor, that each error spoils in one place."""
    B, H, Hkv, L, S, D, M, C = 2, 4, 2, 7, 9, 8, 6, 3
    x = torch.randn
    return {
        "query": x(B, H, L, D),
        "key": x(B, Hkv, S, D),
        "value": x(B, Hkv, S, M),
        "block": 4,
        "left": 2,
        "right": 1,
        "lengths": torch.tensor([9, 4]),
        "starts": torch.tensor([0, 5]),
        "query_lengths": torch.tensor([7, 4]),
        "query_starts": torch.tensor([0, 3]),
        "bias": x(H, 4, 7),
        "key_bias": x(B, S),
        "relative_key": x(1, 7, D),
        "summary_key": x(B, Hkv, C, D),
        "summary_value": x(B, Hkv, C, M),
        "summary_lengths": torch.tensor([3, 1]),
        "summary_relative_key": x(H, C, D),
        "dropout": 0.1,
        "dropout_state": torch.tensor([1, 2]),
    }


def packed():
    """A good call with packed rows."""
    x = torch.randn
    return {
        "query": x(1, 4, 7, 8),
        "key": x(1, 2, 9, 8),
        "value": x(1, 2, 9, 6),
        "block": 4,
        "left": 2,
        "right": 1,
        "cu_seqlens": torch.tensor([0, 4, 9]),
        "query_cu_seqlens": torch.tensor([0, 5, 7]),
        "summary_key": x(2, 2, 3, 8),
        "summary_value": x(2, 2, 3, 6),
    }


def last_axis_apart(x):
    return x.transpose(-1, -2).contiguous().transpose(-1, -2)


x = torch.randn
i = torch.tensor

# What is spoiled, the exception and its text.
ERRORS = {
    # Ranks.
    "query rank": (
        {"query": x(4, 7, 8)},
        ValueError,
        r"query must be \[B, H, L, D\], got 3 dimensions",
    ),
    "key rank": (
        {"key": x(2, 2, 1, 9, 8)},
        ValueError,
        r"key must be \[B, Hkv, S, D\], got 5 dimensions",
    ),
    "value rank": (
        {"value": x(9, 6)},
        ValueError,
        r"value must be \[B, Hkv, S, M\], got 2 dimensions",
    ),
    "bias rank": ({"bias": x(4, 7)}, ValueError, r"bias must be .*, got 2 dim"),
    "key_bias rank": (
        {"key_bias": x(2, 1, 9)},
        ValueError,
        r"key_bias must be \[B, S\], got 3 dimensions",
    ),
    "relative_key rank": (
        {"relative_key": x(7, 8)},
        ValueError,
        r"relative_key must be .*, got 2 dimensions",
    ),
    "summary_key rank": (
        {"summary_key": x(2, 3, 8)},
        ValueError,
        r"summary_key must be \[B, Hkv, C, D\], got 3 dimensions",
    ),
    "query_position rank": (
        {"query_position": i(3)},
        ValueError,
        r"query_position must be \[L\] or \[B, L\], got 0 dimensions",
    ),
    "lengths rank": ({"lengths": i([[9, 4]])}, ValueError, "lengths must be .* got 2"),
    # Types.
    "integer query": (
        {"query": torch.zeros(2, 4, 7, 8, dtype=torch.int64)},
        TypeError,
        "query must be float64, float32, bfloat16 or float16, got Long",
    ),
    "complex query": (
        {"query": x(2, 4, 7, 8, dtype=torch.complex64)},
        TypeError,
        "query must be float64, float32, bfloat16 or float16, got Complex",
    ),
    "key dtype": (
        {"key": x(2, 2, 9, 8).double()},
        TypeError,
        "key must have the dtype of query, Float, got Double",
    ),
    "value dtype": (
        {"value": x(2, 2, 9, 6).half()},
        TypeError,
        "value must have the dtype of query, Float, got Half",
    ),
    "bias dtype": ({"bias": x(4, 4, 7).double()}, TypeError, "bias .* got Double"),
    "key_bias dtype": (
        {"key_bias": torch.zeros(2, 9, dtype=torch.bool)},
        TypeError,
        "key_bias must have the dtype of query, Float, got Bool",
    ),
    "relative_key dtype": (
        {"relative_key": x(1, 7, 8).bfloat16()},
        TypeError,
        "relative_key must have the dtype of query, Float, got BFloat16",
    ),
    "summary_value dtype": (
        {"summary_value": x(2, 2, 3, 6).double()},
        TypeError,
        "summary_value must have the dtype of query, Float, got Double",
    ),
    "lengths dtype": (
        {"lengths": i([9, 4], dtype=torch.int32)},
        TypeError,
        "lengths must be int64, got Int",
    ),
    "query_starts dtype": (
        {"query_starts": i([0.0, 3.0])},
        TypeError,
        "query_starts must be int64, got Float",
    ),
    "query_position dtype": (
        {"query_position": x(7)},
        TypeError,
        "query_position must be int64, got Float",
    ),
    "summary_lengths dtype": (
        {"summary_lengths": i([3, 1], dtype=torch.uint8)},
        TypeError,
        "summary_lengths must be int64, got Byte",
    ),
    "dropout_state dtype": (
        {"dropout_state": i([1.0, 2.0])},
        TypeError,
        "dropout_state must be int64, got Float",
    ),
    # Sizes.
    "key batch": ({"key": x(3, 2, 9, 8)}, ValueError, "axis 0 of key .*B = 2, got 3"),
    "key width": ({"key": x(2, 2, 9, 5)}, ValueError, "axis 3 of key .*D = 8, got 5"),
    "value batch": ({"value": x(1, 2, 9, 6)}, ValueError, "axis 0 of value .* got 1"),
    "value heads": ({"value": x(2, 4, 9, 6)}, ValueError, "axis 1 of value .* got 4"),
    "value length": ({"value": x(2, 2, 8, 6)}, ValueError, "axis 2 of value .* got 8"),
    "head counts": (
        {"key": x(2, 3, 9, 8), "value": x(2, 3, 9, 6)},
        ValueError,
        "heads of query must be a multiple of those of key, got 4 and 3",
    ),
    "no key head": (
        {"key": x(2, 0, 9, 8), "value": x(2, 0, 9, 6)},
        ValueError,
        "heads of query must be a multiple of those of key, got 4 and 0",
    ),
    "no width": (
        {"query": x(2, 4, 7, 0), "key": x(2, 2, 9, 0)},
        ValueError,
        "D and M must be positive, got 0 and 6",
    ),
    "bias heads": ({"bias": x(2, 4, 7)}, ValueError, "axis 0 of bias .*H = 4, got 2"),
    "bias block": ({"bias": x(4, 3, 7)}, ValueError, "axis 1 of bias .*= 4, got 3"),
    "bias slots": ({"bias": x(4, 4, 8)}, ValueError, "axis 2 of bias .*= 7, got 8"),
    "key_bias batch": ({"key_bias": x(1, 9)}, ValueError, "axis 0 of key_bias .*got 1"),
    "key_bias length": (
        {"key_bias": x(2, 7)},
        ValueError,
        "axis 1 of key_bias .*got 7",
    ),
    "relative_key heads": (
        {"relative_key": x(3, 7, 8)},
        ValueError,
        "axis 0 of relative_key must be 1 or H = 4, got 3",
    ),
    "relative_key slots": (
        {"relative_key": x(1, 6, 8)},
        ValueError,
        r"axis 1 of relative_key must be left \+ block \+ right = 7, got 6",
    ),
    "relative_key width": (
        {"relative_key": x(1, 7, 6)},
        ValueError,
        "axis 2 of relative_key must be D = 8, got 6",
    ),
    "summary_key batch": (
        {"summary_key": x(1, 2, 3, 8)},
        ValueError,
        "axis 0 of summary_key .*= 2, got 1",
    ),
    "summary_key heads": (
        {"summary_key": x(2, 4, 3, 8)},
        ValueError,
        "axis 1 of summary_key must be Hkv = 2, got 4",
    ),
    "summary_value count": (
        {"summary_value": x(2, 2, 4, 6)},
        ValueError,
        "axis 2 of summary_value must be C = 3, got 4",
    ),
    "summary_value width": (
        {"summary_value": x(2, 2, 3, 8)},
        ValueError,
        "axis 3 of summary_value must be M = 6, got 8",
    ),
    "summary_relative_key lines": (
        {"summary_relative_key": x(4, 2, 8)},
        ValueError,
        "axis 1 of summary_relative_key must be at least C = 3, got 2",
    ),
    "lengths size": ({"lengths": i([9])}, ValueError, "axis 0 of lengths .*= 2, got 1"),
    "query_lengths size": (
        {"query_lengths": i([7, 7, 7])},
        ValueError,
        "axis 0 of query_lengths .*= 2, got 3",
    ),
    "query_position length": (
        {"query_position": i([0, 1, 2])},
        ValueError,
        "axis 0 of query_position must be L = 7, got 3",
    ),
    "query_position batch": (
        {"query_position": torch.zeros(3, 7, dtype=torch.int64)},
        ValueError,
        "axis 0 of query_position must be B = 2, got 3",
    ),
    "summary_lengths size": (
        {"summary_lengths": i([3])},
        ValueError,
        "axis 0 of summary_lengths .*= 2, got 1",
    ),
    "dropout_state size": (
        {"dropout_state": i([3])},
        ValueError,
        "axis 0 of dropout_state .*= 2, got 1",
    ),
    # Numbers.
    "block 0": ({"block": 0}, ValueError, "block must be positive, got 0"),
    "block -3": ({"block": -3}, ValueError, "block must be positive, got -3"),
    "left": ({"left": -1}, ValueError, "left must not be negative, got -1"),
    "right": ({"right": -2}, ValueError, "right must not be negative, got -2"),
    "far left": (
        {"left": 2**63 - 1},
        ValueError,
        f"left must be at most {2**40}, got {2**63 - 1}",
    ),
    "far query_offset": (
        {"query_offset": -(2**63)},
        ValueError,
        rf"query_offset must lie in \[{-(2**40)}, {2**40}\], got {-(2**63)}",
    ),
    "many summaries": (
        {"summaries_per_block": 2**21},
        ValueError,
        f"summaries_per_block must be at most {2**20}, got {2**21}",
    ),
    "summary_block": (
        {"summary_block": -4},
        ValueError,
        "summary_block must not be negative, got -4",
    ),
    "summaries_per_block": (
        {"summaries_per_block": -1},
        ValueError,
        "summaries_per_block must not be negative, got -1",
    ),
    "scale": ({"scale": float("nan")}, ValueError, "scale must be finite, got nan"),
    "dropout 1": ({"dropout": 1.0}, ValueError, r"dropout must lie in \[0, 1\), got 1"),
    "dropout -1": ({"dropout": -0.5}, ValueError, r"dropout must lie in .* got -0.5"),
    # Arguments that need or exclude one another.
    "dropout alone": (
        {"dropout_state": None},
        ValueError,
        "dropout needs dropout_state = .seed, offset., got none",
    ),
    "starts alone": ({"lengths": None}, ValueError, "starts needs lengths, got none"),
    "query_starts alone": (
        {"query_lengths": None},
        ValueError,
        "query_starts needs query_lengths, got none",
    ),
    "summary_key alone": (
        {"summary_value": None},
        ValueError,
        "summary_key and summary_value come together, got only summary_key",
    ),
    "summary_value alone": (
        {"summary_key": None},
        ValueError,
        "summary_key and summary_value come together, got only summary_value",
    ),
    "summary_lengths alone": (
        {"summary_key": None, "summary_value": None},
        ValueError,
        "summary_lengths and summary_relative_key need summary_key, got none",
    ),
    "query_position and query_offset": (
        {"query_position": torch.arange(7), "query_offset": 2},
        ValueError,
        "query_position excludes query_offset, got query_offset 2",
    ),
    "cu_seqlens and lengths": (
        {"cu_seqlens": i([0, 9])},
        ValueError,
        "cu_seqlens",
    ),
    "query_cu_seqlens alone": (
        {"query_cu_seqlens": i([0, 7])},
        ValueError,
        "query_cu_seqlens needs cu_seqlens, got none",
    ),
    # Strides.
    "query last axis": (
        {"query": last_axis_apart(x(2, 4, 7, 8))},
        ValueError,
        r"last axis of query must be dense .* got stride 7",
    ),
    "key last axis": (
        {"key": last_axis_apart(x(2, 2, 9, 8))},
        ValueError,
        r"last axis of key must be dense .* got stride 9",
    ),
    "value last axis": (
        {"value": x(2, 2, 9, 12)[..., ::2]},
        ValueError,
        r"last axis of value must be dense .* got stride 2",
    ),
    "value last axis expanded": (
        {"value": x(2, 2, 9, 1).expand(2, 2, 9, 6)},
        ValueError,
        r"last axis of value must be dense .* got stride 0",
    ),
    "summary_key last axis": (
        {"summary_key": last_axis_apart(x(2, 2, 3, 8))},
        ValueError,
        r"last axis of summary_key must be dense .* got stride 3",
    ),
}

PACKED_ERRORS = {
    "batch": (
        {"query": x(2, 4, 7, 8), "key": x(2, 2, 9, 8), "value": x(2, 2, 9, 6)},
        ValueError,
        "packed rows .* need a batch of 1, got 2",
    ),
    "no entry": (
        {"cu_seqlens": torch.zeros(0, dtype=torch.int64)},
        ValueError,
        r"cu_seqlens must have R \+ 1 entries, got 0",
    ),
    "rows": (
        {"query_cu_seqlens": i([0, 3, 5, 7])},
        ValueError,
        "cu_seqlens and query_cu_seqlens must name the same rows, got 2 and 3",
    ),
    "dtype": (
        {"cu_seqlens": i([0, 4, 9], dtype=torch.int32)},
        TypeError,
        "cu_seqlens must be int64, got Int",
    ),
    "query dtype": (
        {"query_cu_seqlens": i([0.0, 5.0, 7.0])},
        TypeError,
        "query_cu_seqlens must be int64, got Float",
    ),
    "summaries": (
        {"summary_key": x(1, 2, 3, 8)},
        ValueError,
        "axis 0 of summary_key must be the number of rows = 2, got 1",
    ),
    "lengths": ({"lengths": i([9])}, ValueError, "cu_seqlens excludes lengths"),
    "query_lengths": (
        {"query_lengths": i([7])},
        ValueError,
        "packed rows take query_cu_seqlens, got query_lengths or query_starts",
    ),
}

# These are read from data, which Meta has not.
VALUE_ERRORS = {
    "lengths beyond S": (
        {"lengths": i([10, 4]), "starts": None},
        r"key tokens .* span inside \[0, 9\), got start 0 and length 10 in row 0",
    ),
    "span beyond S": (
        {"starts": i([0, 6])},
        r"key tokens .* span inside \[0, 9\), got start 6 and length 4 in row 1",
    ),
    "negative length": ({"lengths": i([9, -1])}, "got start 5 and length -1 in row 1"),
    "negative start": ({"starts": i([-1, 5])}, "got start -1 and length 9 in row 0"),
    "query span beyond L": (
        {"query_starts": i([1, 3])},
        r"query tokens .* span inside \[0, 7\), got start 1 and length 7 in row 0",
    ),
    "overflowing span": (
        {"starts": i([2**63 - 1, 5]), "lengths": i([2**63 - 1, 4])},
        "got start 9223372036854775807 and length 9223372036854775807 in row 0",
    ),
    "summary_lengths": (
        {"summary_lengths": i([3, 4])},
        r"summary_lengths must lie in \[0, C = 3\], got 4 in row 1",
    ),
    "negative summary_lengths": (
        {"summary_lengths": i([-1, 3])},
        r"summary_lengths must lie in \[0, C = 3\], got -1 in row 0",
    ),
    "far query_position": (
        {"query_position": i([0, 1, 2, 3, 2**62, 5, 6])},
        rf"query_position must lie in \[{-(2**40)}, {2**40}\], got {2**62} in row 0",
    ),
}

PACKED_VALUE_ERRORS = {
    "decreasing": ({"cu_seqlens": i([0, 9, 4])}, "got start 9 and length -5 in row 1"),
    "beyond S": ({"cu_seqlens": i([0, 4, 10])}, "got start 4 and length 6 in row 1"),
    "negative": ({"cu_seqlens": i([-1, 4, 9])}, "got start -1 and length 5 in row 0"),
    "queries beyond L": (
        {"query_cu_seqlens": i([0, 5, 8])},
        r"query tokens .* inside \[0, 7\), got start 5 and length 3 in row 1",
    ),
    "too few queries": ({"query_cu_seqlens": None}, "query tokens .* got start 4 and"),
}


def message(function, arguments, exception, pattern):
    with pytest.raises(exception, match=pattern) as raised:
        function(**arguments)
    # A subclass, or RuntimeError, would be another promise.
    assert raised.type is exception
    text = str(raised.value).splitlines()[0]
    assert re.match(r"window_attention: .*, got ", text), text
    return text


FUNCTIONS = [functional.window_attention, functional.window_attention_with_lse]


def moved(arguments, device):
    """Arguments on a device, with their strides."""

    def move(value):
        if not isinstance(value, torch.Tensor):
            return value
        like = torch.empty_strided(
            value.shape, value.stride(), dtype=value.dtype, device=device
        )
        if device == "meta" or 0 in value.stride():
            return like
        return like.copy_(value)

    return {name: move(value) for name, value in arguments.items()}


def check(base, spoiled, exception, pattern, device):
    for function in FUNCTIONS:
        texts = {
            message(function, moved({**base, **spoiled}, where), exception, pattern)
            for where in (device, "meta")
        }
        assert len(texts) == 1, texts


def test_good_calls_are_good(device):
    for base in (good(), packed()):
        for where in (device, "meta"):
            output = functional.window_attention(**moved(base, where))
            assert output.shape[1:] == (4, 7, 6)


@pytest.mark.parametrize("name", ERRORS)
def test_error(name, device):
    check(good(), *ERRORS[name], device)


@pytest.mark.parametrize("name", PACKED_ERRORS)
def test_error_packed(name, device):
    check(packed(), *PACKED_ERRORS[name], device)


@pytest.mark.parametrize("name", VALUE_ERRORS)
def test_error_in_values(name):
    spoiled, pattern = VALUE_ERRORS[name]
    message(FUNCTIONS[0], {**good(), **spoiled}, ValueError, pattern)


@pytest.mark.parametrize("name", PACKED_VALUE_ERRORS)
def test_error_in_packed_values(name):
    spoiled, pattern = PACKED_VALUE_ERRORS[name]
    message(FUNCTIONS[0], {**packed(), **spoiled}, ValueError, pattern)


@pytest.mark.parametrize(
    "name", [k for k, v in good().items() if isinstance(v, torch.Tensor)]
)
def test_error_of_device(name):
    """One tensor elsewhere: Meta is a device that every machine has."""
    if name == "query":
        pattern = "must be on the device of query, meta, got cpu"
    else:
        pattern = f"{name} must be on the device of query, cpu, got meta"
    base = good()
    message(FUNCTIONS[0], {**base, name: base[name].to("meta")}, ValueError, pattern)


def test_error_under_compile():
    """Fake tensors meet the same checks."""
    compiled = torch.compile(functional.window_attention, fullgraph=True)
    with pytest.raises(Exception, match="block must be positive, got 0"):
        compiled(**{**good(), "block": 0})
