"""Window attention to rows whose tokens lie scattered (``order``)."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend

from subquad import functional, reference
from tests import util

op = functional.window_attention_with_lse
CASES = [case for case in util.CASES if "order" in case.options]


def self_attention(mask, dtype=torch.float64, H=2, D=4, C=0):
    """Inputs for rows of a mask; queries and keys lie alike."""
    B, N = mask.shape
    shapes = {name: (B, H, N, D) for name in ("query", "key", "value")}
    shapes["key_bias"] = (B, N)
    lengths, order = functional.mask_to_spans(mask)
    rows = {
        "lengths": lengths,
        "order": order,
        "query_lengths": lengths,
        "query_order": order,
    }
    return util.random_tensors(shapes, dtype, mask.device), rows


def assert_rows_alone(mask, arguments):
    """Padded rows give what each row gives when it holds its valid tokens alone."""
    tensors, rows = self_attention(mask)
    gradients = util.output_gradients(tensors["query"], tensors["query"][..., 0])
    actual = util.results(op, tensors, {**arguments, **rows}, gradients)
    for b, valid in enumerate(~mask):
        alone = {
            name: x[b : b + 1, valid] if x.dim() == 2 else x[b : b + 1, :, valid]
            for name, x in tensors.items()
        }
        grads = tuple(g[b : b + 1, :, valid] for g in gradients)
        expected = util.results(op, alone, arguments, grads)
        for name, result in actual.items():
            row = result[b] if name == "grad_key_bias" else result[b].transpose(0, 1)
            wanted = expected[name][0]
            wanted = wanted if name == "grad_key_bias" else wanted.transpose(0, 1)
            torch.testing.assert_close(row[valid], wanted, msg=name)
            fill = -math.inf if name == "lse" else 0
            assert (row[~valid] == fill).all(), name


@given(
    st.integers(1, 40).flatmap(
        lambda N: st.lists(
            st.lists(st.booleans(), min_size=N, max_size=N), min_size=1, max_size=3
        )
    ),
    st.sampled_from([(1, 3, 0), (1, 2, 2), (4, 0, 0), (5, 3, 2)]),
    st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_any_mask(rows, window, causal):
    block, left, right = window
    assert_rows_alone(
        torch.tensor(rows),
        {"block": block, "left": left, "right": right, "causal": causal},
    )


def test_sides_of_padding_agree(device):
    B, N = 2, 23
    valid = torch.randn(B, 2, 11, 4, device=device, dtype=torch.float64)
    results = []
    generator = torch.Generator().manual_seed(0)
    scattered = torch.randperm(N, generator=generator)[:11].sort().values
    for index in (torch.arange(11), torch.arange(N - 11, N), scattered):
        index = index.to(device)
        mask = torch.ones(B, N, device=device)
        mask[:, index] = 0
        x = torch.full((B, 2, N, 4), math.nan, device=device, dtype=torch.float64)
        x[:, :, index] = valid
        x.requires_grad_()
        lengths, order = functional.mask_to_spans(mask)
        y = functional.window_attention(
            x,
            x,
            x,
            block=1,
            left=3,
            right=2,
            lengths=lengths,
            order=order,
            query_lengths=lengths,
            query_order=order,
        )
        (grad,) = torch.autograd.grad(y.square().sum(), x)
        assert (grad[:, :, mask[0] != 0] == 0).all()
        assert (y[:, :, mask[0] != 0] == 0).all()
        results.append((y[:, :, index], grad[:, :, index]))
    for y, grad in results[1:]:
        util.assert_same_bits(y, results[0][0])
        util.assert_same_bits(grad, results[0][1])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_padded_part_of_an_order_is_not_read(case, device):
    """Only the first `length` entries of a row of an order are read."""
    arguments = case.arguments(device)
    for prefix in ("", "query_"):
        if prefix + "order" not in arguments:
            continue
        tail = arguments[prefix + "lengths"][:, None]
        order = arguments[prefix + "order"]
        rank = torch.arange(order.shape[1], device=device)
        arguments[prefix + "order"] = torch.where(rank < tail, order, -1)
    tensors = case.tensors(device=device)
    actual = util.results(op, tensors, arguments)
    expected = util.results(op, tensors, case.arguments(device))
    for name, result in actual.items():
        util.assert_same_bits(result, expected[name], name=name)


def test_dropout_of_a_row_does_not_depend_on_the_others(device):
    """Row 0 is a span that does not start at 0; row 1 is one or is none."""
    masks = torch.zeros(2, 2, 9, device=device)
    masks[:, 0, :3] = 1
    masks[1, 1, 4] = 1
    state = torch.tensor([3, 5], device=device)
    arguments = {"block": 4, "left": 2, "right": 1, "dropout": 0.4}
    arguments["dropout_state"] = state
    outcomes = []
    for mask in masks:
        tensors, rows = self_attention(mask)
        outcomes.append(util.results(op, tensors, {**arguments, **rows}))
        expected = reference.window_attention(**tensors, **arguments, **rows)
        torch.testing.assert_close(outcomes[-1]["output"], expected)
    for name, result in outcomes[0].items():
        util.assert_same_bits(result[0], outcomes[1][name][0], name=name)


@pytest.mark.parametrize("dtype", util.DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("layout", ["BHLD", "BLHD", "LBHD"])
def test_layouts(layout, dtype, device):
    """Copies and results keep the layout; none changes a bit."""
    mask = torch.rand(3, 41, device=device) < 0.4
    tensors, rows = self_attention(mask, dtype)
    arguments = {"block": 1, "left": 5, "right": 5, **rows}
    expected = util.results(op, tensors, arguments)
    axes = {"BHLD": (0, 1, 2, 3), "BLHD": (0, 2, 1, 3), "LBHD": (2, 0, 1, 3)}[layout]
    back = torch.tensor(axes).argsort().tolist()
    for name in ("query", "key", "value"):
        tensors[name] = tensors[name].permute(axes).contiguous().permute(back)
    actual = util.results(op, tensors, arguments)
    for name, result in actual.items():
        util.assert_same_bits(result, expected[name], name=name)
    assert actual["output"].permute(axes).is_contiguous()
    assert actual["grad_query"].permute(axes).is_contiguous()


def test_gradient_of_expanded_and_strided_results(device):
    mask = torch.rand(2, 9, device=device) < 0.5
    tensors, rows = self_attention(mask)
    arguments = {"block": 3, "left": 1, "right": 1, **rows}
    gradients = (
        torch.ones((), device=device, dtype=torch.float64).expand(2, 2, 9, 4),
        torch.ones(9, 2, 2, device=device, dtype=torch.float64).permute(1, 2, 0),
    )
    dense = tuple(g.contiguous() for g in gradients)
    actual = util.results(op, tensors, arguments, gradients)
    expected = util.results(op, tensors, arguments, dense)
    for name, result in actual.items():
        util.assert_same_bits(result, expected[name], name=name)


@pytest.mark.parametrize("wanted", ["query", "key", "value", "key_bias"])
def test_one_gradient_at_a_time(wanted, device):
    mask = torch.rand(2, 9, device=device) < 0.5
    tensors, rows = self_attention(mask)
    arguments = {"block": 3, "left": 1, "right": 1, **rows}
    expected = util.results(op, tensors, arguments)[f"grad_{wanted}"]
    tensors[wanted].requires_grad_()
    outputs = op(**tensors, **arguments)
    (grad,) = torch.autograd.grad(
        outputs, tensors[wanted], util.output_gradients(*outputs)
    )
    util.assert_same_bits(grad, expected)


def call(device, **changes):
    x = torch.zeros(2, 1, 4, 3, device=device)
    lengths = torch.tensor([4, 2], device=device)
    order = torch.arange(4, device=device).repeat(2, 1)
    arguments = {"lengths": lengths, "order": order}
    for name, change in changes.items():
        arguments[name] = change(arguments.get(name, lengths))
    arguments = {k: v for k, v in arguments.items() if v is not None}
    return functional.window_attention(x, x, x, block=1, left=1, right=0, **arguments)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        (
            {"lengths": lambda x: None},
            ValueError,
            "order needs lengths, got none",
        ),
        (
            {"query_order": lambda x: x[:, None].expand(2, 4)},
            ValueError,
            "query_order needs query_lengths, got none",
        ),
        (
            {"starts": lambda x: x},
            ValueError,
            "order excludes starts and cu_seqlens, got starts",
        ),
        (
            {"lengths": lambda x: None, "cu_seqlens": lambda x: x},
            ValueError,
            "order excludes starts and cu_seqlens, got cu_seqlens",
        ),
        (
            {"order": lambda x: x.int()},
            TypeError,
            "order must be int64, got Int",
        ),
        (
            {"order": lambda x: x[0]},
            ValueError,
            r"order must be \[batch size, tokens\], got 1 dimensions",
        ),
        (
            {"order": lambda x: x[:1]},
            ValueError,
            "axis 0 of order must be the batch size = 2, got 1",
        ),
        (
            {"order": lambda x: x[:, :3]},
            ValueError,
            "axis 1 of order must be the number of tokens = 4, got 3",
        ),
    ],
)
def test_refusals(changes, error, text, device):
    with pytest.raises(error, match="^window_attention: " + text):
        call(device, **changes)


@pytest.mark.parametrize(
    ("order", "text"),
    [
        ([0, 1, 3, 4], r"must lie in \[0, 4\), got 4 in row 0"),
        ([1, 2, 3, 4], r"must lie in \[0, 4\), got 4 in row 0"),
        ([-1, 0, 1, 2], r"must lie in \[0, 4\), got -1 in row 0"),
        ([0, 2, 2, 1], "must not repeat a token, got 2 twice in row 0"),
        ([0, 2**62, 2, 1], rf"must lie in \[0, 4\), got {2**62} in row 0"),
    ],
)
def test_refused_tokens(order, text):
    orders = torch.tensor([order, [0, 1, 2, 3]])
    with pytest.raises(
        ValueError, match="^window_attention: the order of key tokens " + text
    ):
        call("cpu", order=lambda x: orders)
    with pytest.raises(
        ValueError, match="^window_attention: the order of query tokens " + text
    ):
        call("cpu", query_order=lambda x: orders, query_lengths=lambda x: x)


def test_refused_lengths():
    with pytest.raises(ValueError, match=r"^window_attention: the key tokens of"):
        call("cpu", lengths=lambda x: torch.tensor([4, 5]))


def test_compile_once_for_all_lengths(device):
    def attend(x, mask):
        lengths, order = functional.mask_to_spans(mask)
        return functional.window_attention(
            x,
            x,
            x,
            block=1,
            left=3,
            right=0,
            causal=True,
            lengths=lengths,
            order=order,
            query_lengths=lengths,
            query_order=order,
        )

    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(attend, fullgraph=True, dynamic=True, backend=counter)
    first = 0
    for L in (13, 17, 29, 64):
        x = torch.randn(3, 2, L, 8, device=device, requires_grad=True)
        mask = torch.rand(3, L, device=device) < 0.4
        for function in (compiled, attend):
            y = function(x, mask)
            (grad,) = torch.autograd.grad(y.square().sum(), x)
            if function is compiled:
                actual = y, grad
        util.assert_same_bits(actual[0], y)
        util.assert_same_bits(actual[1], grad)
        # The first call may trace more than once (it looks for constant floats).
        first = first or counter.frame_count
    assert counter.frame_count == first
