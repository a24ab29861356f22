"""The CUDA kernels of window_attention_weights against the CPU's."""

import pytest
import torch

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# The CPU sums gradients in another order.
TOLERANCES = {
    torch.float64: {"rtol": 1e-9, "atol": 1e-10},
    torch.float32: {"rtol": 1e-4, "atol": 1e-5},
    torch.bfloat16: {"rtol": 2e-2, "atol": 1e-3},
    torch.float16: {"rtol": 4e-3, "atol": 1e-4},
}


class Case:
    """Arguments of the private operators, by the names of the schema."""

    def __init__(
        self,
        dtype=torch.float32,
        batch=2,
        heads=2,
        key_heads=1,
        queries=9,
        keys=9,
        dim=5,
        block=1,
        left=2,
        right=1,
        tables=(),
        **options,
    ):
        torch.manual_seed(0)

        def random(*sizes):
            # Small enough that no weight overflows float16.
            return 0.5 * torch.randn(*sizes, dtype=dtype)

        wide = torch.float64 if dtype == torch.float64 else torch.float32
        slots = left + block + right
        self.query = random(batch, queries, heads, dim).transpose(1, 2)
        self.key = random(batch, key_heads, keys, dim)
        self.lse = torch.randn(batch, heads, queries, dtype=wide) + 2
        # What saw nothing gets no weights.
        if queries > 3:
            self.lse[0, 0, 3] = -torch.inf
        sizes = {
            "bias": (heads, block, slots),
            "shared_bias": (1, block, slots),
            "key_bias": (batch, keys),
            "relative_key": (heads, slots, dim),
            "shared_relative_key": (1, slots, dim),
        }
        self.tables = {"bias": None, "key_bias": None, "relative_key": None}
        for name in tables:
            self.tables[name.removeprefix("shared_")] = random(*sizes[name])
        self.options = {
            "block": block,
            "left": left,
            "right": right,
            "causal": False,
            "query_offset": 0,
            "query_position": None,
            "query_spans": None,
            "key_spans": None,
            "packed": False,
            "query_order": None,
            "key_order": None,
            "scale": 0.3,
        } | options
        self.grad = random(batch, heads, queries, slots)

    def forward(self, ops):
        return ops._window_attention_weights_forward(
            self.query, self.key, self.lse, **self.tables, **self.options
        )

    def backward(self, ops, weights, wanted=None):
        given = [True, True, True, *(x is not None for x in self.tables.values())]
        return ops._window_attention_weights_backward(
            self.grad,
            weights,
            self.query,
            self.key,
            self.lse,
            **self.tables,
            **self.options,
            output_mask=wanted or given,
        )


def spans(*pairs):
    return torch.tensor(pairs, dtype=torch.int64)


EVERY_TABLE = ("bias", "key_bias", "relative_key")
SHARED_TABLES = ("shared_bias", "key_bias", "shared_relative_key")
CASES = {
    "sliding": {},
    "causal": {"causal": True, "right": 0},
    "blocks": {"block": 4, "left": 4, "right": 4, "queries": 11, "keys": 13},
    "tables": {"tables": EVERY_TABLE, "block": 3},
    "shared tables": {"tables": SHARED_TABLES, "block": 2, "query_offset": -3},
    "grouped heads": {"heads": 4, "key_heads": 2, "queries": 5},
    "wide heads": {"dim": 75, "tables": EVERY_TABLE, "queries": 5, "keys": 5},
    "many queries": {"batch": 1, "heads": 1, "queries": 75, "keys": 70, "dim": 3},
    "one": {"batch": 1, "heads": 1, "queries": 1, "keys": 1, "dim": 1},
    "offset": {"queries": 3, "keys": 12, "query_offset": 9},
    "shared positions": {
        "query_position": torch.tensor([4, 0, 8, 8, 2, 1, 0, 7, -2]),
        "tables": EVERY_TABLE,
        "block": 2,
    },
    "positions": {
        "query_position": torch.arange(18).view(2, 9).flip(1) - 3,
        "tables": SHARED_TABLES,
    },
    "spans": {
        "query_spans": spans((2, 5), (0, 0)),
        "key_spans": spans((1, 8), (3, 4)),
        "tables": EVERY_TABLE,
    },
    "packed": {
        "batch": 1,
        "packed": True,
        "query_spans": spans((0, 4), (4, 0), (4, 5)),
        "key_spans": spans((0, 3), (3, 2), (5, 4)),
        "tables": EVERY_TABLE,
        "block": 2,
    },
    "order": {
        "query_spans": spans((0, 5), (0, 9)),
        "key_spans": spans((0, 7), (0, 4)),
        "query_order": torch.stack([torch.randperm(9) for _ in range(2)]),
        "key_order": torch.stack([torch.randperm(9) for _ in range(2)]),
        "query_position": torch.arange(9) // 2,
        "tables": EVERY_TABLE,
    },
    "no keys": {"keys": 0},
    "no queries": {"queries": 0},
}


@pytest.mark.parametrize("name", CASES)
def test_options(emulated, in_every_order, assert_same, name):
    case = Case(**CASES[name])
    weights = case.forward(torch.ops.subquad)
    assert_same(in_every_order(lambda: case.forward(emulated)), weights, TOLERANCES)
    assert_same(
        in_every_order(lambda: case.backward(emulated, weights)),
        case.backward(torch.ops.subquad, weights),
        TOLERANCES,
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(emulated, in_every_order, assert_same, dtype):
    case = Case(dtype=dtype, tables=EVERY_TABLE, queries=7, keys=8, dim=33, block=2)
    weights = case.forward(torch.ops.subquad)
    assert_same(in_every_order(lambda: case.forward(emulated)), weights, TOLERANCES)
    assert_same(
        in_every_order(lambda: case.backward(emulated, weights)),
        case.backward(torch.ops.subquad, weights),
        TOLERANCES,
    )


@pytest.mark.parametrize("wanted", range(6))
def test_single_gradients(emulated, in_every_order, assert_same, wanted):
    case = Case(tables=EVERY_TABLE, queries=5, keys=5)
    weights = case.forward(torch.ops.subquad)
    mask = [index == wanted for index in range(6)]
    assert_same(
        in_every_order(lambda: case.backward(emulated, weights, mask)),
        case.backward(torch.ops.subquad, weights, mask),
        TOLERANCES,
    )


def test_wrong_values_stay_inside_the_tensors(emulated):
    """Nobody can check them without waiting for the device; the emulator would
    report an access outside. Repeated queries would race."""
    order = torch.tensor([[5, -7, 1 << 40, 0, 1, 2, 3, 4, 8]]).expand(2, 9)
    case = Case(
        query_spans=spans((-4, 7), (1 << 40, 5)),
        key_spans=spans((4, 1 << 40), (-(1 << 62), 3)),
        query_order=torch.arange(9).flip(0).expand(2, 9),
        key_order=order,
        tables=EVERY_TABLE,
    )
    assert case.forward(emulated).isfinite().all()
