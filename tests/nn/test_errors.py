"""What the modules refuse, and how they say so."""

import pytest
import torch

from subquad import UnsupportedPattern
from subquad.nn import (
    AbstractAttention,
    CosformerAttention,
    LocalAttention,
    MultiheadAttention,
    Performer,
)
from tests.nn.util import HEADS, WIDTH

MODULES = [LocalAttention, MultiheadAttention, Performer, CosformerAttention]
QUERY = torch.zeros(5, 2, WIDTH)


@pytest.mark.parametrize("cls", MODULES)
@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"num_heads": 5}, ValueError, "num_heads must be positive and divide"),
        ({"num_heads": 0}, ValueError, "num_heads must be .* got 0 and 24"),
        ({"num_kv_heads": 3}, ValueError, "num_kv_heads must be .* got 3 and 4"),
        ({"dropout": 1.0}, ValueError, r"dropout must lie in \[0, 1\), got 1.0"),
        ({"embed_dim": 12, "rotary_base": 1e4}, ValueError, "even head width.* got 3"),
        ({"rotary_base": -1.0}, ValueError, "positive base"),
        ({"dropuot": 0.1}, TypeError, "'dropuot', did you mean 'dropout'"),
        ({"num_head": 4}, TypeError, "'num_head', did you mean 'num_heads'"),
        ({"zzz": 4}, TypeError, "'zzz', valid are embed_dim, num_heads"),
    ],
)
def test_constructor(cls, options, error, text):
    arguments = {"embed_dim": WIDTH, "num_heads": HEADS} | options
    with pytest.raises(error, match=f"^{cls.__name__}: .*{text}"):
        cls(**arguments)


def test_options_are_keywords():
    with pytest.raises(TypeError, match="positional"):
        LocalAttention(WIDTH, HEADS, 3)


def test_nearest_option_of_the_mechanism_itself():
    with pytest.raises(TypeError, match="'windowsize', did you mean 'window_size'"):
        LocalAttention(WIDTH, HEADS, windowsize=3)
    with pytest.raises(TypeError, match="'casual', did you mean 'causal'"):
        AbstractAttention(casual=True)


@pytest.mark.parametrize(("causal", "window"), [(True, 0), (False, -1)])
def test_window(causal, window):
    with pytest.raises(ValueError, match=f"window_size must be .* got {window}"):
        LocalAttention(WIDTH, HEADS, window_size=window, causal=causal)


@pytest.mark.parametrize("script", [False, True])
@pytest.mark.parametrize("cls", MODULES)
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"query": torch.zeros(5, WIDTH)}, "query must have three axes and 24"),
        ({"query": torch.zeros(5, 2, 7)}, "query must have .* got .*5, 2, 7"),
        ({"key": torch.zeros(5, 2, 7)}, "key must have three axes and 24"),
        ({"value": torch.zeros(2, WIDTH)}, "value must have three axes"),
        ({"value": torch.zeros(4, 2, WIDTH)}, "key and value must have the same"),
        ({"key": torch.zeros(5, 3, WIDTH)}, "query and key .* got 2 and 3"),
        ({"key": torch.zeros(6, 2, WIDTH)}, "as many keys as queries, got 6 and 5"),
        ({"static_kv": True}, "static_kv needs cross attention"),
        ({"key_padding_mask": torch.zeros(5, 2)}, r"\[2, 5\], got \[5, 2\]"),
        ({"key_padding_mask": torch.zeros(10)}, r"\[2, 5\], got \[10\]"),
    ],
)
def test_call(cls, arguments, text, script):
    module = cls(WIDTH, HEADS)
    error = ValueError
    if script:
        module, error = torch.jit.script(module), torch.jit.Error
    with pytest.raises(error, match=text):
        module(**{"query": QUERY, **arguments})


def test_query_padding_of_another_shape():
    module = LocalAttention(WIDTH, HEADS, cross=True)
    with pytest.raises(ValueError, match=r"\[2, 5\], got \[2, 6\]"):
        module(QUERY, query_padding_mask=torch.zeros(2, 6))


def test_attn_mask():
    mask = torch.zeros(5, 5)
    with pytest.raises(NotImplementedError, match="attn_mask is not supported"):
        LocalAttention(WIDTH, HEADS)(QUERY, attn_mask=mask)
    with pytest.raises(ValueError, match="exclude each other"):
        MultiheadAttention(WIDTH, HEADS, causal=True)(QUERY, attn_mask=mask)
    module = MultiheadAttention(WIDTH, HEADS)
    with pytest.raises(ValueError, match=r"\[5, 5\] or \[8, 5, 5\], got \[5, 4\]"):
        module(QUERY, attn_mask=mask[:, :4])


@pytest.mark.parametrize("option", ["need_weights", "need_head_weights"])
@pytest.mark.parametrize("cls", [Performer, CosformerAttention])
def test_weights_that_there_are_not(cls, option):
    with pytest.raises(UnsupportedPattern, match=f"^{cls.__name__}: need_weights is"):
        cls(WIDTH, HEADS)(QUERY, **{option: True})


def test_an_unsupported_pattern_is_both_kinds_of_error():
    assert issubclass(UnsupportedPattern, NotImplementedError)
    assert issubclass(UnsupportedPattern, AssertionError)


def test_repr_shows_the_pattern():
    module = LocalAttention(
        WIDTH, HEADS, window_size=3, num_kv_heads=2, causal=True, rotary_base=1e4
    )
    assert "window_size=3, num_heads=4, num_kv_heads=2" in repr(module)
    assert "rotary_base=10000.0, causal=True" in repr(module)
