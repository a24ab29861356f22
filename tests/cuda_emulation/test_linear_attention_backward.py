"""Gradients of linear_attention's CUDA kernels: what test_linear_attention.py does
not see."""

import pytest
import torch

from subquad import functional
from tests import util
from tests.cuda_emulation.linear_cases import (
    BY_NAME,
    Emulated,
    emulated_results,
    given_gradients,
    reference_results,
    results,
)

POISONS = [float("nan"), float("inf")]


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
    arguments = (case.tensors(dtype), case.arguments(dtype))
    of_results = given_gradients(case, dtype)
    in_every_order(
        lambda: tuple(emulated_results(emulated, *arguments, of_results).values())
    )


def of_heads(tokens, x):
    """Tokens [B, N] as a mask of ``x``, [B, heads, N] or [B, heads, N, width]."""
    mask = tokens[:, None] if x.dim() == 3 else tokens[:, None, :, None]
    return mask.expand_as(x)


def put(x, tokens, poison):
    """``x`` with tokens of all its heads poisoned."""
    return torch.where(of_heads(tokens, x), poison, x)


def untouched(case, bad_queries, bad_keys):
    """Tokens whose results keep their bits: queries [B, L] and keys [B, S]."""
    visible = case.visible()
    queries = bad_queries | (visible & bad_keys[:, None]).any(2)
    keys = bad_keys | (visible & queries[:, :, None]).any(1)
    if case.log_scale:  # is of both
        keys = keys | queries
    return ~queries, ~keys


def assert_untouched(actual, clean, queries, keys):
    for name, tokens in {
        "output": queries,
        "grad_query": queries,
        "grad_key": keys,
        "grad_value": keys,
        "grad_key_log_scale": keys,
    }.items():
        if name in actual:
            where = of_heads(tokens, actual[name])
            util.assert_same_bits(actual[name], clean[name], where, name)


@pytest.mark.parametrize("poison", POISONS)
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("several-chunks", torch.float32),
        ("several-chunks", torch.float16),
        ("blindspot", torch.bfloat16),
        ("long-blindspot", torch.float32),
        ("softmax", torch.float32),
        ("dpfp", torch.float16),
        ("copies", torch.float64),
        ("log-scale", torch.float32),
        ("order-blindspot", torch.float16),
        ("packed-all", torch.float32),
        ("packed-cross", torch.float32),
        ("full-spans", torch.float16),
        ("wide", torch.bfloat16),
        ("grouped", torch.float64),
    ],
    ids=str,
)
def test_no_leak(name, dtype, poison, emulated):
    """NaN and infinity reach only those who see their tokens."""
    case = BY_NAME[name]
    tensors, arguments = case.tensors(dtype), case.arguments(dtype)
    of_results = given_gradients(case, dtype)
    clean = emulated_results(emulated, tensors, arguments, of_results)
    (_, query_rank), (_, key_rank) = case.rows()
    for kind in ("query", "key", "value", "output"):
        # One token of each row is bad, and all that belong to none.
        bad_queries, bad_keys = query_rank == 40, key_rank == 40
        outside_queries, outside_keys = query_rank < 0, key_rank < 0
        of_queries = kind in ("query", "output")
        bad_queries = bad_queries & of_queries
        bad_keys = bad_keys & (not of_queries)
        worse, worse_of = dict(tensors), dict(of_results)
        worse["query"] = put(worse["query"], outside_queries, poison)
        worse_of["output"] = put(worse_of["output"], outside_queries, poison)
        for other in ("key", "value", "key_log_scale"):
            if other in worse:
                worse[other] = put(worse[other], outside_keys, poison)
        target = worse_of if kind == "output" else worse
        target[kind] = put(
            target[kind], bad_queries if of_queries else bad_keys, poison
        )
        actual = emulated_results(emulated, worse, arguments, worse_of)
        queries, keys = untouched(case, bad_queries, bad_keys)
        assert_untouched(actual, clean, queries, keys)
        if kind == "value" and bool(bad_keys.any()):
            assert not actual["output"].isfinite().all()


def test_masks(emulated):
    """Each gradient alone has the bits that it has among all."""
    case = BY_NAME["packed-all"]
    dtype = torch.float32
    with Emulated(emulated) as mode:
        results(
            functional.linear_attention_with_state,
            case.tensors(dtype),
            case.arguments(dtype),
            given_gradients(case, dtype),
        )
    *arguments, wanted = mode.arguments
    assert all(wanted)
    everything = emulated._linear_attention_backward(*arguments, wanted)
    for i, expected in enumerate(everything):
        mask = [j == i for j in range(len(wanted))]
        found = emulated._linear_attention_backward(*arguments, mask)
        util.assert_same_bits(found[i], expected)
        assert all(x.numel() == 0 for j, x in enumerate(found) if j != i)


@pytest.mark.parametrize("which", ["output", "state_kv", "state_k", "state_log_scale"])
def test_one_gradient_of_four(which, emulated):
    case = BY_NAME["packed-all"]
    tensors, arguments = case.tensors(torch.float32), case.arguments(torch.float32)
    of_results = {which: given_gradients(case, torch.float32)[which]}
    actual = emulated_results(emulated, tensors, arguments, of_results)
    expected = reference_results(tensors, arguments, of_results)
    for name, result in actual.items():
        torch.testing.assert_close(
            result, expected[name], rtol=1e-4, atol=3e-5, msg=name
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_expanded_gradient(dtype, emulated):
    """Of a sum: all elements of the gradient are one number in memory."""
    case = BY_NAME["several-chunks"]
    tensors, arguments = case.tensors(dtype), case.arguments(dtype)
    shape = given_gradients(case, dtype)["output"].shape
    of_results = {"output": torch.ones((), dtype=dtype).expand(shape)}
    dense = {"output": of_results["output"].contiguous()}
    actual = emulated_results(emulated, tensors, arguments, of_results)
    expected = emulated_results(emulated, tensors, arguments, dense)
    for name, result in actual.items():
        util.assert_same_bits(result, expected[name], name=name)


def test_queries_without_keys(emulated):
    """The first bucket sees nothing: zeros, and no gradient."""
    case = BY_NAME["blindspot"]
    tensors, arguments = case.tensors(torch.float32), case.arguments(torch.float32)
    of_results = {"output": given_gradients(case, torch.float32)["output"]}
    found = emulated_results(emulated, tensors, arguments, of_results)
    assert not found["output"][:, :, :3].any()
    assert not found["grad_query"][:, :, :3].any()
    assert found["output"][:, :, 3:].any()
