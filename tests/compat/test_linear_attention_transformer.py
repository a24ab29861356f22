"""The functions of linear-attention-transformer, and its golden vectors."""

import importlib
import inspect
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from subquad import compat
from subquad.compat import linear_attention_transformer as surface
from subquad.compat.linear_attention_transformer import (
    causal_linear_attn,
    linear_attn,
)

GOLDEN = Path(__file__).parent.parent / "golden" / "lin"
CASES = {
    case["name"]: case
    for case in json.loads((GOLDEN / "manifest.json").read_text())["cases"]
}


def test_every_case_is_run():
    assert len(CASES) == 7


@pytest.mark.parametrize("name", CASES)
def test_golden(name):
    case = CASES[name]
    tensors = load_file(GOLDEN / case["file"])
    causal = name.startswith("causal")
    function = causal_linear_attn if causal else linear_attn
    inputs = {key: tensors[f"in.{key}"] for key in case["inputs"]}
    leaves = {key: x.requires_grad_() for key, x in inputs.items() if key in "qkv"}
    output = function(**inputs, **case["forward_kwargs"])
    rounding = case["fp32_vs_fp64_max_abs"]
    tolerance = max(1e-5, 20 * rounding["out"]["y"])
    torch.testing.assert_close(output, tensors["out.y"], atol=tolerance, rtol=0)
    (output * tensors["gradout.y"]).sum().backward()
    tolerance = max(1e-5, 20 * rounding["grad_in"])
    for key, x in leaves.items():
        expected = tensors[f"grad.in.{key}"]
        torch.testing.assert_close(x.grad, expected, atol=tolerance, rtol=0)


def test_signatures():
    names = "q k v kv_mask".split()
    assert list(inspect.signature(linear_attn).parameters) == names
    names += ["bucket_size", "eps"]
    assert list(inspect.signature(causal_linear_attn).parameters) == names


def test_the_callers_tensors_stay_as_they_were():
    mask = torch.tensor([[True, False, True, False]])
    for function in (linear_attn, causal_linear_attn):
        options = {} if function is linear_attn else {"bucket_size": 2}
        x = torch.randn(1, 2, 4, 3)
        before = x.clone()
        output = function(x, x, x, mask, **options)
        assert torch.equal(x, before)
        leaf = x.clone().requires_grad_()
        function(leaf, leaf, leaf, mask, **options).sum().backward()
        # What is masked is not read.
        other = x.masked_fill(~mask[:, None, :, None], torch.nan)
        assert torch.equal(function(x, other, other, mask, **options), output)


@pytest.mark.parametrize("function", [linear_attn, causal_linear_attn])
def test_a_row_of_masked_keys_gives_zero(function):
    options = {} if function is linear_attn else {"bucket_size": 1}
    x = torch.randn(2, 2, 6, 4, requires_grad=True)
    mask = torch.tensor([[True] * 6, [False] * 6])
    output = function(x, x, x, mask, **options)
    assert not output[1].any()
    assert output[0].any()
    (gradient,) = torch.autograd.grad(output.sum(), x)
    assert gradient.isfinite().all()
    assert not gradient[1].any()


def test_masked_tokens_keep_their_place_in_the_buckets():
    x = torch.randn(1, 1, 6, 4)
    mask = torch.tensor([[True, False, True, True, True, True]])
    output = causal_linear_attn(x, x, x, mask, bucket_size=2)
    assert not output[:, :, :2].any()
    # The first bucket has one token left, whose value all of the second get.
    alone = causal_linear_attn(x, x, x, bucket_size=1, eps=0.0)[:, :, :1]
    torch.testing.assert_close(
        causal_linear_attn(x, x, x, mask, bucket_size=2, eps=0.0)[:, :, 2:4],
        alone.expand(-1, -1, 2, -1),
    )


def test_a_bucket_of_nothing_is_one_token():
    x = torch.randn(1, 2, 5, 4)
    one = causal_linear_attn(x, x, x, bucket_size=1)
    assert torch.equal(causal_linear_attn(x, x, x, bucket_size=0), one)


def test_buckets_that_do_not_divide():
    x = torch.randn(1, 2, 10, 4)
    for options in ({}, {"bucket_size": 64}):
        with pytest.raises(AssertionError, match="got 10 and 64"):
            causal_linear_attn(x, x, x, **options)


def test_other_widths_of_values():
    q, v = torch.randn(1, 2, 6, 4), torch.randn(1, 2, 6, 7)
    assert linear_attn(q, q, v).shape == (1, 2, 6, 7)
    assert causal_linear_attn(q, q, v, bucket_size=2).shape == (1, 2, 6, 7)


def test_install(monkeypatch):
    name = "linear_attention_transformer"
    # The project itself may be installed and imported: a peer of the benchmarks.
    for module in [m for m in sys.modules if m.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    try:
        for _ in range(2):
            compat.install(name)
            root = importlib.import_module(name)
            inner = importlib.import_module(f"{name}.{name}")
            assert root is surface
            assert inner.linear_attn is linear_attn
            assert inner.causal_linear_attn is causal_linear_attn
    finally:
        compat.uninstall(name)
    for gone in (name, f"{name}.{name}"):
        assert gone not in sys.modules
