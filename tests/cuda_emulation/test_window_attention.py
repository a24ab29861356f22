"""The CUDA forward kernel of window_attention against the CPU's."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.cuda_emulation.conftest import bits
from tests.util import CASES, DTYPES, Case

FORWARD = torch.ops.subquad._window_attention_forward.default

# More than a tile, head dims with and without padding and whole vectors, values
# of other widths, more than one tile of summaries.
LARGE = [
    Case("tiles-sliding", 1, 40, 40, L=130, D=64),
    Case("tiles-block", 64, 64, 64, L=200, D=33),
    Case(
        "tiles-wide",
        *(1, 63, 0, 1),
        Hkv=1,
        L=150,
        D=256,
        M=100,
        options={"causal": True},
    ),
    Case(
        "tiles-summaries",
        *(16, 16, 0),
        L=75,
        D=100,
        M=256,
        C=70,
        options={"summary_block": 16, "summaries_per_block": 15},
    ),
    Case("tiles-one", 1, 3, 3, L=1, D=5),
    Case("tiles-none", 1, 3, 3, L=0, D=5),
    Case("tiles-no-keys", 1, 3, 3, L=33, S=0, D=5),
    Case(
        "tiles-terms",
        *(1, 63, 0),
        L=100,
        D=128,
        bias=2,
        key_bias=True,
        relative_key=1,
        options={"causal": True, "dropout": 0.3, "dropout_state": [5, 6]},
    ),
    # A row of tokens one after the other keeps its place in the count of dropout.
    Case(
        "dropout-order",
        *(4, 3, 2),
        L=6,
        options={
            "dropout": 0.4,
            "dropout_state": [7, 8],
            "query_lengths": [4, 3],
            "query_order": [[2, 3, 4, 5, 0, 1], [0, 2, 5, 1, 3, 4]],
            "lengths": [3, 4],
            "order": [[3, 4, 5, 0, 1, 2], [0, 1, 3, 5, 2, 4]],
        },
    ),
]
# Tensor cores multiply weights that are rounded to the dtype, which the CPU does
# not.
TOLERANCES = {
    torch.float64: {"rtol": 1e-11, "atol": 1e-12},
    torch.float32: {"rtol": 1e-5, "atol": 5e-6},
    torch.bfloat16: {"rtol": 1.6e-2, "atol": 1.6e-2},
    torch.float16: {"rtol": 2e-3, "atol": 2e-3},
}


class _Arguments(TorchDispatchMode):
    """Keeps the arguments of the inner operator."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is FORWARD:
            self.kept = args
        return func(*args, **(kwargs or {}))


def call(case, dtype, **replaced):
    """Results of the CPU operator, and the arguments of the inner one."""
    with torch.no_grad(), _Arguments() as arguments:
        results = torch.ops.subquad.window_attention_with_lse(
            **(case.tensors(dtype) | replaced), **case.arguments()
        )
    return results, arguments.kept


def seen(case, j):
    """Which queries see key j."""
    p = torch.arange(case.L)
    block = p // case.block * case.block
    sees = (j >= block - case.left) & (j < block + case.block + case.right)
    return sees & (j <= p) if case.options.get("causal") else sees


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES + LARGE, ids=str)
def test_values(emulated, assert_same, case, dtype):
    expected, arguments = call(case, dtype)
    actual = emulated._window_attention_forward(*arguments)
    assert_same(actual, expected, TOLERANCES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_order_of_threads(emulated, in_every_order, assert_same, case, dtype):
    expected, arguments = call(case, dtype)
    actual = in_every_order(lambda: emulated._window_attention_forward(*arguments))
    assert_same(actual, expected, TOLERANCES)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides(emulated, assert_same, dtype):
    """Projections viewed as heads, and rows that no vector access may touch."""
    case = Case("strides", 1, 5, 4, L=40, D=24)
    tensors = case.tensors(dtype)
    views = {
        "query": tensors["query"].permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3),
        "key": torch.cat([tensors["key"]] * 2, -1)[..., 1:25],
        "value": tensors["value"][:1].expand(2, -1, -1, -1),
    }
    expected, arguments = call(case, dtype, **views)
    actual = emulated._window_attention_forward(*arguments)
    assert_same(actual, expected, TOLERANCES)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", LARGE[:3], ids=str)
def test_unseen_keys_do_not_count(emulated, case, dtype, bad):
    _, arguments = call(case, dtype)
    before = emulated._window_attention_forward(*arguments)
    for j in (0, 37, 70):
        changed = list(arguments)
        for i in (1, 2):  # key and value
            changed[i] = arguments[i].clone()
            changed[i][:, :, j] = bad
        after = emulated._window_attention_forward(*changed)
        sees = seen(case, j)
        for old, new in zip(before, after, strict=True):
            assert torch.equal(bits(new[:, :, ~sees]), bits(old[:, :, ~sees]))
        assert not after[0][:, :, sees].isfinite().any()


def test_wide_heads_are_refused(emulated):
    _, arguments = call(Case("wide", 1, 1, 1, L=3, D=257), torch.float32)
    with pytest.raises(NotImplementedError, match=r"window_attention: the head.*257"):
        emulated._window_attention_forward(*arguments)


@pytest.mark.parametrize(
    "name, values",
    [
        ("key_spans", [[-3, 2], [99, 3]]),
        ("key_spans", [[0, -2], [1, 99]]),
        ("query_spans", [[-9, 99], [3, -1]]),
        ("key_order", [[-7, 99, 5, 5], [3, 2, 2**40, -1]]),
        # Two queries at one place would race.
        ("query_order", [[-7, 99, 2, 1], [2, 1, 2**40, -1]]),
    ],
)
def test_wrong_values_stay_inside_the_tensors(emulated, name, values):
    """They cannot be refused without waiting for the device."""
    options = {"lengths": [2, 3], "query_lengths": [4, 3]}
    if name.endswith("order"):
        options |= {"order": [[0, 1, 2, 3]] * 2, "query_order": [[3, 2, 1, 0]] * 2}
    case = Case("rows", 4, 3, 2, L=4, options=options)
    _, arguments = call(case, torch.float32)
    names = [argument.name for argument in FORWARD._schema.arguments]
    changed = list(arguments)
    changed[names.index(name)] = torch.tensor(values)
    emulated._window_attention_forward(*changed)  # an access outside would raise
