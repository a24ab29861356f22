"""What must work wherever a wheel was installed; needs nothing but pytest.

``pytest tests/smoke`` in a clean environment says whether the wheel fits it.
"""

import json
import subprocess
import sys

import pytest
import torch

import subquad
from subquad.nn import LocalAttention

OPS = torch.ops.subquad
WINDOW = {"block": 1, "left": 2, "right": 0, "causal": True}


def numbers(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def attention(x):
    return OPS.window_attention(x, x, x, **WINDOW)


def weights(x):
    lse = OPS.window_attention_with_lse(x, x, x, **WINDOW)[1]
    return OPS.window_attention_weights(x, x, lse, **WINDOW)


def merge(x):
    output, lse = OPS.window_attention_with_lse(x, x, x, **WINDOW)
    return OPS.merge_attention(output, lse, 2 * output, lse)[0]


def projection(x):
    return OPS.projection(x, x[0, 0], None)


def spans(x):
    mask = torch.arange(7, device=x.device).expand(2, 7) > 4
    lengths, order = OPS.mask_to_spans(mask)
    return x * lengths.sum() + order.sum()


CASES = [attention, weights, merge, projection, spans]


@pytest.mark.parametrize("case", CASES)
def test_forward_and_backward(case):
    torch.manual_seed(0)
    assert torch.autograd.gradcheck(case, (numbers(1, 2, 7, 4),))


@pytest.mark.parametrize("case", CASES)
def test_compile(case):
    x = torch.randn(1, 2, 7, 4)
    compiled = torch.compile(case, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), case(x))


def test_values_are_those_of_the_reference():
    x = numbers(1, 2, 7, 4)
    expected = subquad.reference.window_attention(x, x, x, **WINDOW)
    torch.testing.assert_close(attention(x), expected)


def test_script_and_save(tmp_path):
    module = LocalAttention(16, 2, window_size=3, causal=True).eval()
    x = torch.randn(7, 1, 16)
    torch.jit.script(module).save(tmp_path / "module.pt")
    loaded = torch.jit.load(tmp_path / "module.pt")
    assert torch.equal(loaded(x)[0], module(x)[0])


def test_info():
    command = [sys.executable, "-m", "subquad", "info", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    assert report["torch"] == torch.__version__
    assert "window_attention" in report["operators"]
