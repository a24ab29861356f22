"""Window attention at the ends: long, beyond 32-bit offsets, on older CPUs."""

import json
import math
from pathlib import Path

import pytest
import torch

from subquad import functional, reference
from tests import util

MEMORY = """
import json
import torch
from subquad import functional


def peak():
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024


def reset():
    with open("/proc/self/clear_refs", "w") as f:
        f.write("5")


L, D = {length}, 64
# A first call, so that the library's own pages are not counted.
x = torch.randn(1, 1, 300, D, requires_grad=True)
functional.window_attention(x, x, x, block=1, left=32, right=0).sum().backward()
shape = (L, 1, D)
query, key, value = (
    torch.randn(shape).view(L, 1, 1, D).permute(1, 2, 0, 3).requires_grad_()
    for _ in range(3)
)
grad = torch.randn(shape).view(L, 1, 1, D).permute(1, 2, 0, 3)
size = 4 * query.numel() * query.element_size()
reset()
before = peak()
output = functional.window_attention(query, key, value, {window})
forward = peak() - before
grads = torch.autograd.grad(output, (query, key, value), grad)
backward = peak() - before
print(
    json.dumps(
        dict(
            forward=forward / size,
            backward=backward / size,
            finite=bool(all(x.isfinite().all() for x in (output, *grads))),
        )
    )
)
"""


def memory(length, window):
    """Peak extra memory over that of q + k + v + out, forward and with backward."""
    script = MEMORY.format(length=length, window=window)
    return json.loads(util.run_python("-c", script).splitlines()[-1])


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc"
)
@pytest.mark.parametrize(
    "window",
    [
        "block=1, left=63, right=0, causal=True",
        "block=64, left=0, right=0",
    ],
)
def test_memory_is_linear_to_a_million_tokens(window):
    """At most 3 times q + k + v + out; a quarter of the length takes no less."""
    short, long = memory(2**18, window), memory(2**20, window)
    assert short["finite"]
    assert long["finite"]
    for ratio in (short, long):
        # The output alone is a quarter, the three gradients three more.
        assert ratio["forward"] < 1, ratio
        assert ratio["backward"] < 3, ratio
    assert long["backward"] < 1.2 * short["backward"] + 0.1


def far_apart(x, stride):
    """The numbers of ``x`` [B, ...] with ``stride`` elements between its rows.

    Only the pages that are written take memory.
    """
    inner = x[0].numel()
    storage = torch.empty((x.shape[0] - 1) * stride + inner, dtype=x.dtype)
    view = storage.as_strided(x.shape, (stride, *x.stride()[1:]))
    return view.copy_(x)


def test_batch_strides_beyond_32_bits():
    """Offsets in elements pass 2**32; the results are those of dense tensors."""
    case = next(case for case in util.CASES if case.name == "all")
    tensors = case.tensors(torch.bfloat16)
    arguments = case.arguments()
    op = functional.window_attention_with_lse
    with torch.no_grad():
        gradients = util.output_gradients(*op(**tensors, **arguments))
    expected = util.results(op, tensors, arguments, gradients)
    far = {
        name: far_apart(x, 2**32 + 64) if x.dim() == 4 else x
        for name, x in tensors.items()
    }
    far_gradients = far_apart(gradients[0], 2**32 + 64), gradients[1]
    actual = util.results(op, far, arguments, far_gradients)
    for name, result in actual.items():
        util.assert_same_bits(result, expected[name], name=name)


def test_positions_and_offsets_beyond_32_bits():
    """Positions near 2**39 see the keys that a small position would."""
    x = torch.randn(1, 2, 8, 4, dtype=torch.float64)
    far = 2**39  # a window may reach 2**40 tokens
    window = {"block": 3, "left": 2 * far, "right": 0, "causal": True}
    near = functional.window_attention(
        x, x, x, block=3, left=99, right=0, causal=True, query_offset=9
    )
    actual = functional.window_attention(x, x, x, **window, query_offset=far)
    torch.testing.assert_close(actual, near)
    # Windows that end before the first key, and begin after the last.
    for offset in (-far, far):
        output, lse = functional.window_attention_with_lse(
            x, x, x, block=3, left=5, right=5, query_offset=offset
        )
        assert not output.any()
        assert (lse == -math.inf).all()


@pytest.mark.slow
def test_keys_beyond_32_bits():
    """Keys and values whose rows lie past 2**31 elements, and weights past 2**32."""
    S, L, W, stride = 2**25 + 1000, 160, 8, 72
    storage = torch.empty(S * stride, dtype=torch.bfloat16)
    key = storage.as_strided((1, 1, S, 4), (0, 0, stride, 1))
    value = storage[8:].as_strided((1, 1, S, 4), (0, 0, stride, 1))
    # Only the last keys are seen; the rest stays unwritten.
    tail = slice(S - L - W, S)
    numbers = util.random_tensors(
        {"query": (1, 1, L, 4), "key": (1, 1, L + W, 4), "value": (1, 1, L + W, 4)},
        torch.bfloat16,
    )
    key[:, :, tail], value[:, :, tail] = numbers["key"], numbers["value"]
    query = numbers["query"]
    output, lse = functional.window_attention_with_lse(
        query, key, value, block=1, left=W - 1, right=0, query_offset=S - L
    )
    expected = functional.window_attention_with_lse(
        **numbers, block=1, left=W - 1, right=0, query_offset=W
    )
    util.assert_same_bits(output, expected[0])
    util.assert_same_bits(lse, expected[1])
    assert (L - 1) * S > 2**32
    dropped = functional.window_attention(
        query,
        key,
        value,
        block=1,
        left=W - 1,
        right=0,
        query_offset=S - L,
        dropout=0.5,
        dropout_state=torch.tensor([1, 2]),
    )
    # The last query's weights have numbers past 2**32: compare them alone.
    columns = torch.arange(S - W, S)
    keep = reference.keep_mask((L - 1) * S + columns, 0.5, torch.tensor([1, 2]))
    k = numbers["key"][0, 0, -W:].float()
    v = numbers["value"][0, 0, -W:].float()
    weights = ((k @ query[0, 0, -1].float()) * 0.5).softmax(0)
    wanted = (weights * keep * 2) @ v
    torch.testing.assert_close(dropped[0, 0, -1].float(), wanted, rtol=0.02, atol=0.02)


# Each level that ATen compiles its kernels for, and what oneDNN may use then.
LEVELS = {"default": "SSE41", "avx2": "AVX2", "avx512": "AVX512_CORE"}


def supported(level):
    """Whether this CPU runs kernels of a level."""
    found = torch.backends.cpu.get_cpu_capability().lower()
    order = ["default", "avx2", "avx512"]
    return found in order and order.index(level) <= order.index(found)


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS)
def test_instruction_sets(level):
    """The kernels of each level give the numbers of the reference."""
    if not supported(level):
        pytest.skip(f"this CPU, or ATEN_CPU_CAPABILITY, has no {level}")
    folder = Path(__file__).parent
    report = util.run_python(
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-m",
        "not cuda",
        str(folder / "test_window_attention.py"),
        str(folder / "test_merge_attention.py"),
        "-k",
        "(test_parity and not float64 and not float16) or test_random_calls",
        ATEN_CPU_CAPABILITY=level,
        ONEDNN_MAX_CPU_ISA=LEVELS[level],
    )
    assert " passed" in report.splitlines()[-1], report
    forced = util.run_python(
        "-c",
        "import torch; print(torch.backends.cpu.get_cpu_capability())",
        ATEN_CPU_CAPABILITY=level,
    )
    assert forced.lower() == level
