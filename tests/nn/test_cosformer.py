"""cosFormer: its length, and long decoding."""

import pytest
import torch

from subquad import UnsupportedPattern
from subquad.nn import CosformerAttention
from tests.nn.util import HEADS, WIDTH, close, decode

QUERY = torch.zeros(1, 2, WIDTH)


def build(**options):
    torch.manual_seed(0)
    return CosformerAttention(WIDTH, HEADS, **options).eval()


def test_the_length_of_a_row_is_its_own():
    """Without max_length the number of valid tokens counts, of queries or keys."""
    module = build(cross=True).double()
    query = torch.randn(7, 2, WIDTH).double()
    key = torch.randn(12, 2, WIDTH).double()
    padding = torch.zeros(2, 12, dtype=torch.bool)
    padding[0, 5:] = padding[1, :2] = True
    output, _ = module(query, key, key_padding_mask=padding)
    for b, length in enumerate((7, 10)):
        fixed = build(cross=True, max_length=length).double()
        row = key[~padding[b], b : b + 1]
        close(output[:, b : b + 1], fixed(query[:, b : b + 1], row)[0])


@pytest.mark.parametrize("cross", [False, True])
def test_decoding_needs_the_length(cross):
    module = build(causal=True, cross=cross)
    options = {"key": QUERY, "static_kv": True} if cross else {}
    with pytest.raises(UnsupportedPattern, match="decoding needs max_length"):
        module(QUERY, incremental_state={}, **options)
    if cross:
        with pytest.raises(UnsupportedPattern, match="decoding needs max_length"):
            module(QUERY, QUERY, incremental_state={})


def test_a_longer_sequence_is_refused():
    module = build(causal=True, max_length=5)
    query = torch.randn(6, 2, WIDTH)
    with pytest.raises(ValueError, match="less than max_length = 5, got 5"):
        module(query)
    state = {}
    decode(module, query[:5], [3, 1, 1], state=state)
    with pytest.raises(ValueError, match="less than max_length = 5, got 5"):
        module(query[5:], incremental_state=state)
    # Padding does not count.
    mask = torch.zeros(2, 6, dtype=torch.bool)
    mask[:, 2] = True
    module(query, key_padding_mask=mask)
    module = build(cross=True, max_length=5)
    with pytest.raises(ValueError, match="less than max_length = 5, got 5"):
        module(query[:3], query)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("act_fun", ["relu", "elu"])
def test_thousands_of_steps(act_fun, dtype):
    """A prefix and steps equal the whole after 4096 tokens."""
    module = build(act_fun=act_fun, causal=True, max_length=5000).to(dtype)
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


def test_without_an_output_projection():
    module = build(has_outproj=False)
    assert not any(name.startswith("out_proj") for name in module.state_dict())
    query = torch.randn(7, 2, WIDTH)
    plain, _ = module(query)
    full = build()
    full.load_state_dict(module.state_dict(), strict=False)
    close(full.out_proj(plain), full(query)[0])
    module.reset_parameters()
    close(torch.jit.script(module)(query)[0], module(query)[0])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"act_fun": "tanh"}, "act_fun must be 'relu' or 'elu', got 'tanh'"),
        ({"max_length": 0}, "max_length must be at least 1, got 0"),
    ],
)
def test_options(options, text):
    with pytest.raises(ValueError, match=f"^CosformerAttention: {text}"):
        CosformerAttention(WIDTH, HEADS, **options)


def test_repr():
    module = build(max_length=9, causal=True)
    expected = "act_fun='relu', max_length=9, num_heads=4, causal=True"
    assert module.extra_repr() == expected
