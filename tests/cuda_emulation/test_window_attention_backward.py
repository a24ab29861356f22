"""The CUDA kernels of window_attention's gradients against the CPU's."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from subquad import functional
from tests import util
from tests.ops import test_window_attention_isolation as isolation

op = functional.window_attention_with_lse
BACKWARD = torch.ops.subquad._window_attention_backward.default
BY_NAME = {case.name: case for case in util.CASES + util.LARGE_CASES}
# Every kind of argument, for what is too slow to try with every case.
CHOSEN = [
    "block-overlap-causal",
    "sliding",
    "position-batch",
    "spans",
    "packed-cross",
    "grouped",
    "narrow-values",
    "bias-shared",
    "summaries-per-block",
    "summaries-relative",
    "order-all",
    "all",
    "all-packed",
]
# Tensor cores multiply weights that are rounded to the dtype, which the CPU does
# not: such products may be off by a rounding of each term.
UNITS = {
    torch.float64: 8,
    torch.float32: 8,
    torch.bfloat16: 8,
    torch.float16: 8,
}


class Emulated(TorchDispatchMode):
    """Within it the emulator computes gradients, and ``arguments`` are kept."""

    def __init__(self, ops):
        super().__init__()
        self.ops = ops
        self.arguments = None

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is not BACKWARD:
            return func(*args, **(kwargs or {}))
        self.arguments = args
        return self.ops._window_attention_backward(*args, **(kwargs or {}))


def gradients(ops, tensors, arguments, of_results=None):
    """Gradients by name, from the emulator."""
    with Emulated(ops):
        found = util.results(op, tensors, arguments, of_results)
    return {name: x for name, x in found.items() if name.startswith("grad_")}


def assert_as_exact_as_cpu(ops, tensors, arguments, of_results=None):
    dtype = tensors["query"].dtype
    exact_of = None
    if of_results is not None:
        exact_of = tuple(x.double() for x in of_results)
    actual = gradients(ops, tensors, arguments, of_results)
    cpu = util.results(op, tensors, arguments, of_results)
    exact = util.results(
        op, {name: x.double() for name, x in tensors.items()}, arguments, exact_of
    )
    for name in actual:
        assert actual[name].stride() == cpu[name].stride()
    # The log-sum-exp says how exact weights can be.
    actual["lse"] = cpu["lse"]
    util.assert_as_exact_as(
        actual,
        {name: cpu[name] for name in actual},
        {name: exact[name] for name in actual},
        UNITS[dtype],
    )


@pytest.mark.parametrize("case", util.CASES, ids=str)
def test_float32(case, emulated):
    assert_as_exact_as_cpu(emulated, case.tensors(torch.float32), case.arguments())


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str
)
@pytest.mark.parametrize("name", CHOSEN)
def test_other_dtypes(name, dtype, emulated):
    case = BY_NAME[name]
    assert_as_exact_as_cpu(emulated, case.tensors(dtype), case.arguments())


def sized(L, D, M, dtype, **fields):
    """One row of two heads, with every optional term but relative keys."""
    case = util.Case(
        "sized",
        *(1, 20, 3),
        B=1,
        H=2,
        Hkv=1,
        L=L,
        D=D,
        M=M,
        C=L // 4 + 1,
        bias=1,
        key_bias=True,
        options={"summary_block": 8, "causal": True},
        **fields,
    )
    tensors = case.tensors(dtype)
    tensors["query"] *= D**-0.5
    return case, tensors


@pytest.mark.parametrize(
    ("L", "D", "M", "dtype"),
    [
        (1, 5, 64, torch.float16),
        (31, 256, 256, torch.float64),
        (33, 100, 33, torch.float32),
        (33, 256, 200, torch.float32),
        (75, 33, 5, torch.bfloat16),
        (75, 100, 64, torch.float64),
        (75, 256, 256, torch.bfloat16),
        (130, 64, 256, torch.float16),
        (130, 128, 100, torch.float16),
        (130, 64, 64, torch.float32),
    ],
    ids=str,
)
def test_sizes(L, D, M, dtype, emulated):
    case, tensors = sized(L, D, M, dtype)
    assert_as_exact_as_cpu(emulated, tensors, case.arguments())


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("cross-position", torch.float16),
        ("sliding-odd-width", torch.float32),
        ("grouped-packed", torch.bfloat16),
        ("many-summaries", torch.float16),
        ("long-packed", torch.float16),
    ],
    ids=str,
)
def test_tiles(name, dtype, emulated):
    """Several tiles of queries, keys and summaries, and segments of queries."""
    case = BY_NAME[name]
    assert_as_exact_as_cpu(emulated, case.tensors(dtype), case.arguments())


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("order-all", torch.float32),
        ("all", torch.float16),
        ("all-packed", torch.float64),
        ("sliding-odd-width", torch.bfloat16),
    ],
    ids=str,
)
def test_every_order_of_threads(name, dtype, emulated, in_every_order):
    case = BY_NAME[name]
    tensors, arguments = case.tensors(dtype), case.arguments()
    in_every_order(lambda: tuple(gradients(emulated, tensors, arguments).values()))


@pytest.mark.parametrize("poison", isolation.POISONS.values(), ids=isolation.POISONS)
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, torch.float32) for name in CHOSEN if name != "all"),
        ("grouped", torch.float16),
        ("all", torch.bfloat16),
    ],
    ids=str,
)
def test_no_leak(name, dtype, poison, emulated):
    """NaN and infinity reach only those who see their tokens."""
    case = BY_NAME[name]
    tensors, arguments = case.tensors(dtype), case.arguments()
    of_results = isolation.gradients_for(tensors, arguments)
    clean = gradients(emulated, tensors, arguments, of_results)
    generator = torch.Generator().manual_seed(0)
    bad = tuple(
        torch.rand(mask.shape, generator=generator) < 0.15
        for mask in isolation.none_of(case)
    )
    worse, worse_of = isolation.poisoned(tensors, of_results, poison, *bad)
    actual = gradients(emulated, worse, arguments, worse_of)
    touched = isolation.Sight.of(name).touched(*bad)
    isolation.assert_untouched(actual, clean, *touched)


@pytest.mark.parametrize("name", ["spans", "order-all", "all", "all-packed"])
def test_padding_is_absence(name, emulated):
    """What nobody sees changes no bit, tables included."""
    case = BY_NAME[name]
    tensors, arguments = case.tensors(torch.float32), case.arguments()
    of_results = isolation.gradients_for(tensors, arguments)
    clean = gradients(emulated, tensors, arguments, of_results)
    worse, worse_of = isolation.poisoned(
        tensors, of_results, float("nan"), *isolation.unseen(case)
    )
    actual = gradients(emulated, worse, arguments, worse_of)
    for name, result in actual.items():
        util.assert_same_bits(result, clean[name], name=name)


def test_masks(emulated):
    """Each gradient alone has the bits that it has among all."""
    case = BY_NAME["all"]
    with Emulated(emulated) as mode:
        util.results(op, case.tensors(torch.float32), case.arguments())
    *arguments, wanted = mode.arguments
    assert all(wanted)
    all_of_them = emulated._window_attention_backward(*arguments, wanted)
    for i, expected in enumerate(all_of_them):
        mask = [j == i for j in range(len(wanted))]
        found = emulated._window_attention_backward(*arguments, mask)
        util.assert_same_bits(found[i], expected)
        assert all(x.numel() == 0 for j, x in enumerate(found) if j != i)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_expanded_gradient(dtype, emulated):
    """Of a sum: all elements of the gradient are one number in memory."""
    case = BY_NAME["wide-values"]
    tensors, arguments = case.tensors(dtype), case.arguments()
    output, lse = op(**tensors, **arguments)
    of_results = (
        torch.ones((), dtype=dtype).expand(output.shape),
        torch.ones((), dtype=lse.dtype).expand(lse.shape),
    )
    dense = tuple(x.contiguous() for x in of_results)
    actual = gradients(emulated, tensors, arguments, of_results)
    expected = gradients(emulated, tensors, arguments, dense)
    for name, result in actual.items():
        util.assert_same_bits(result, expected[name], name=name)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_layouts(dtype, emulated):
    """Heads beside tokens, odd strides and starts."""
    case = BY_NAME["grouped"]
    tensors, arguments = case.tensors(dtype), case.arguments()
    expected = gradients(emulated, tensors, arguments)
    query, key, value = (tensors[name] for name in ("query", "key", "value"))
    tensors["query"] = query.transpose(1, 2).contiguous().transpose(1, 2)
    tensors["key"] = torch.nn.functional.pad(key, (1, 2))[..., 1:-2]
    tensors["value"] = value.repeat_interleave(2, 2)[:, :, ::2]
    actual = gradients(emulated, tensors, arguments)
    for name, result in actual.items():
        util.assert_same_bits(result, expected[name], name=name)


@pytest.mark.parametrize("which", ["output", "lse"])
def test_one_gradient_of_two(which, emulated):
    case = BY_NAME["summaries"]
    tensors, arguments = case.tensors(torch.float32), case.arguments()
    index = ("output", "lse").index(which)
    grad = isolation.gradients_for(tensors, arguments)[index]

    def run():
        leaves = {k: v.detach().requires_grad_() for k, v in tensors.items()}
        result = op(**leaves, **arguments)[index]
        # The gradient of lse does not reach the values.
        return torch.autograd.grad(
            result, list(leaves.values()), grad, materialize_grads=True
        )

    expected = run()
    with Emulated(emulated):
        actual = run()
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-5)


def test_queries_without_keys(emulated):
    """Logits of -inf everywhere: no gradient."""
    case = BY_NAME["key-bias"]
    tensors, arguments = case.tensors(torch.float32), case.arguments()
    tensors["key_bias"][:] = -torch.inf
    for name, grad in gradients(emulated, tensors, arguments).items():
        assert not grad.any(), name


def test_too_wide(emulated):
    case = util.Case("wide", 1, 1, 0, B=1, H=1, L=3, D=8, M=257)
    with pytest.raises(NotImplementedError, match=r"at most 256.*got 8 and 257"):
        gradients(emulated, case.tensors(torch.float32), case.arguments())
