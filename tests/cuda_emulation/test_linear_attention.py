"""The CUDA kernels of linear_attention against plain PyTorch, forward."""

import pytest
import torch

from subquad import functional
from tests import util
from tests.cuda_emulation.linear_cases import (
    BY_NAME,
    CASES,
    RESULTS,
    Emulated,
    cpu_results,
    emulated_results,
    given_gradients,
    reference_results,
)

# Roundings of the largest number. Tensor cores multiply features and states that
# are rounded to the dtype; in float64 the reference is the measure itself.
UNITS = {
    torch.float64: 64,
    torch.float32: 16,  # as the CPU operator is allowed
    torch.bfloat16: 8,
    torch.float16: 8,
}
# Every kind of argument, for what is too slow to try with every case.
CHOSEN = [
    "several-chunks",
    "blindspot",
    "softmax",
    "dpfp-copies",
    "state-log-scale",
    "full-spans",
    "packed-all",
    "wide",
]


def forward(ops, case, dtype):
    with Emulated(ops):
        found = functional.linear_attention_with_state(
            **case.tensors(dtype), **case.arguments(dtype)
        )
    return dict(zip(RESULTS, found, strict=True))


def assert_exact(ops, case, dtype):
    """Forward and backward, with all gradients."""
    of_results = given_gradients(case, dtype)
    tensors, arguments = case.tensors(dtype), case.arguments(dtype)
    actual = emulated_results(ops, tensors, arguments, of_results)
    exact = reference_results(
        {name: x.double() for name, x in tensors.items()},
        case.arguments(torch.float64),
        {name: x.double() for name, x in of_results.items()},
    )
    same = reference_results(tensors, arguments, of_results)
    for name, result in actual.items():
        assert result.dtype == same[name].dtype, name
    if not case.log_scale:
        for found in (actual, exact, same):
            found.pop("state_log_scale")
    util.assert_as_exact_as(actual, same, exact, UNITS[dtype])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_float32(case, emulated):
    assert_exact(emulated, case, torch.float32)


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str
)
@pytest.mark.parametrize("name", CHOSEN)
def test_other_dtypes(name, dtype, emulated):
    assert_exact(emulated, BY_NAME[name], dtype)


@pytest.mark.parametrize("name", CHOSEN)
def test_same_as_cpu(name, emulated):
    """Layouts too; in float32 both round alike but for the order of sums."""
    case = BY_NAME[name]
    tensors, arguments = case.tensors(torch.float32), case.arguments(torch.float32)
    tensors["query"] = tensors["query"].transpose(1, 2).contiguous().transpose(1, 2)
    of_results = given_gradients(case, torch.float32)
    actual = emulated_results(emulated, tensors, arguments, of_results)
    expected = cpu_results(tensors, arguments, of_results)
    for name, result in actual.items():
        assert result.stride() == expected[name].stride(), name
        torch.testing.assert_close(
            result, expected[name], rtol=1e-4, atol=1e-4, msg=name
        )


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("order-log-scale", torch.float32),
        ("packed-all", torch.float16),
        ("blindspot", torch.float64),
        ("full-spans", torch.bfloat16),
    ],
    ids=str,
)
def test_every_order_of_threads(name, dtype, emulated, in_every_order):
    case = BY_NAME[name]
    in_every_order(lambda: tuple(forward(emulated, case, dtype).values()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_layouts(dtype, emulated):
    """Heads beside tokens, odd strides and starts."""
    case = BY_NAME["grouped"]
    tensors, arguments = case.tensors(dtype), case.arguments(dtype)
    expected = forward(emulated, case, dtype)
    query, key, value = (tensors[name] for name in ("query", "key", "value"))
    tensors["query"] = query.transpose(1, 2).contiguous().transpose(1, 2)
    tensors["key"] = torch.nn.functional.pad(key, (1, 2))[..., 1:-2]
    tensors["value"] = value.repeat_interleave(2, 2)[:, :, ::2]
    with Emulated(emulated):
        found = functional.linear_attention_with_state(**tensors, **arguments)
    for name, result in zip(RESULTS, found, strict=True):
        util.assert_same_bits(result, expected[name], name=name)


def test_states_beyond_float16(emulated):
    """Sums of many tokens may be larger than the largest number of the dtype."""
    x = torch.full((1, 1, 200, 8), 20.0, dtype=torch.float16)
    v = torch.full((1, 1, 200, 4), 200.0, dtype=torch.float16)
    with Emulated(emulated):
        output = functional.linear_attention(x, x, v, causal=True)
    assert torch.equal(output, v)


@pytest.mark.parametrize("sizes", [(0, 2, 3, 3), (1, 1, 0, 0), (1, 1, 3, 0)])
@pytest.mark.parametrize("causal", [False, True])
def test_nothing(sizes, causal, emulated):
    B, H, L, S = sizes
    query, key = torch.randn(B, H, S if causal else L, 4), torch.randn(B, H, S, 4)
    with Emulated(emulated):
        output, kv, k, _ = functional.linear_attention_with_state(
            query, key, key, causal=causal
        )
    assert output.shape == query.shape
    if S == 0:
        assert not output.any() and not kv.any() and not k.any()


def test_a_state_outlives_no_tokens(emulated):
    x = torch.randn(1, 2, 0, 4)
    state = [torch.randn(1, 2, 4, 4), torch.randn(1, 2, 4), torch.randn(1, 2)]
    with Emulated(emulated):
        _, *after = functional.linear_attention_with_state(
            x,
            x,
            x,
            causal=True,
            key_log_scale=torch.zeros(1, 2, 0),
            state_kv=state[0],
            state_k=state[1],
            state_log_scale=state[2],
        )
    for found, expected in zip(after, state, strict=True):
        util.assert_same_bits(found, expected)


def test_no_rows(emulated):
    x = torch.randn(1, 1, 3, 4)
    with Emulated(emulated):
        output = functional.linear_attention(x, x, x, cu_seqlens=torch.zeros(1).long())
    assert not output.any()
