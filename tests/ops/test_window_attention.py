"""The numbers of window attention: against the reference, and their properties."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from subquad import functional, reference
from tests import util

op = functional.window_attention_with_lse
reference_op = reference.window_attention_with_lse
BY_NAME = {case.name: case for case in util.CASES + util.LARGE_CASES}


def exact_results(tensors, arguments, gradients):
    """Results of the reference in float64 for the given rounded inputs."""
    tensors = {name: x.double() for name, x in tensors.items()}
    gradients = tuple(x.double() for x in gradients)
    return util.results(reference_op, tensors, arguments, gradients)


def check_parity(case, dtype, device):
    tensors = case.tensors(dtype, device)
    arguments = case.arguments(device)
    with torch.no_grad():
        gradients = util.output_gradients(*op(**tensors, **arguments))
    actual = util.results(op, tensors, arguments, gradients)
    exact = exact_results(tensors, arguments, gradients)
    if dtype == torch.float64:
        same_dtype = exact
    else:
        same_dtype = util.results(reference_op, tensors, arguments, gradients)
    for name, result in actual.items():
        expected = same_dtype[name]
        if dtype == torch.float64:
            assert result.dtype == torch.float64, name
        else:
            assert result.dtype == expected.dtype, name
    units = 64 if dtype == torch.float64 else 4
    util.assert_as_exact_as(actual, same_dtype, exact, units)


@pytest.mark.parametrize("dtype", util.DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("case", util.CASES, ids=str)
def test_parity(case, dtype, device):
    check_parity(case, dtype, device)


@pytest.mark.parametrize("dtype", util.DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("case", util.LARGE_CASES, ids=str)
def test_parity_large(case, dtype, device):
    check_parity(case, dtype, device)


@pytest.mark.parametrize("case", util.CASES, ids=str)
def test_gradcheck(case, device):
    # Seven tokens are enough, and a Jacobian of them is affordable.
    tensors = case.tensors(torch.float64, device)
    names = list(tensors)
    arguments = case.arguments(device)

    def outputs(*values):
        output, lse = op(**dict(zip(names, values, strict=True)), **arguments)
        # -inf - -inf is no number.
        return output, torch.where(lse.isfinite(), lse, 0)

    leaves = [x.requires_grad_() for x in tensors.values()]
    assert torch.autograd.gradcheck(outputs, leaves, fast_mode=True)


@pytest.mark.parametrize("name", ["block-overlap-causal", "sliding", "all"])
def test_gradcheck_every_entry(name, device):
    case = dataclasses.replace(BY_NAME[name], D=3, M=2)
    if not case.options:
        case = dataclasses.replace(case, L=7)
    tensors = case.tensors(torch.float64, device)
    names = list(tensors)
    arguments = case.arguments(device)

    def output(*values):
        return op(**dict(zip(names, values, strict=True)), **arguments)[0]

    leaves = [x.requires_grad_() for x in tensors.values()]
    assert torch.autograd.gradcheck(output, leaves)


@pytest.mark.parametrize("case", util.CASES, ids=str)
def test_queries_without_keys(case, device):
    """They get zero, -inf and zero gradients; nobody gets NaN."""
    tensors, arguments = case.tensors(torch.float32, device), case.arguments(device)
    found = util.results(op, tensors, arguments)
    blind = torch.ones(case.B, case.L, dtype=torch.bool, device=device)
    for b, _, i, _, pairs, limit in util.sight(case):
        blind[b, i] = not pairs and not limit
    blind = blind[:, None].expand(-1, case.H, -1)
    assert util.is_finite_or_empty(found["lse"])
    assert torch.equal(found["lse"] == -math.inf, blind)
    for name, result in found.items():
        assert name == "lse" or result.isfinite().all(), name
    for name in ("output", "grad_query"):
        assert not found[name][blind].any(), name


WINDOWS = {
    "block": {"block": 5, "left": 0, "right": 0},
    "block-overlap": {"block": 4, "left": 4, "right": 4},
    "block-causal": {"block": 4, "left": 4, "right": 0, "causal": True},
    "sliding": {"block": 1, "left": 3, "right": 3},
    "sliding-causal": {"block": 1, "left": 15, "right": 0, "causal": True},
}


@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
def test_sizes(window, device):
    W = window["left"] + window["block"] + window["right"]
    for L in (0, 1, W - 1, W, W + 1, 31, 67):
        for S in {L, 0, 1, 23}:
            tensors = util.random_tensors(
                {"query": (2, 2, L, 4), "key": (2, 1, S, 4), "value": (2, 1, S, 3)},
                torch.float64,
                device,
            )
            actual = util.results(op, tensors, window)
            expected = util.results(reference_op, tensors, window)
            util.assert_as_exact_as(actual, expected, expected, 64)


def test_empty_axes(device):
    """No batch entry, no head, no summary, no row."""
    for B, H, C in ((0, 2, 3), (2, 0, 3), (2, 2, 0)):
        shapes = {
            "query": (B, H, 5, 4),
            "key": (B, 1, 5, 4),
            "value": (B, 1, 5, 4),
            "summary_key": (B, 1, C, 4),
            "summary_value": (B, 1, C, 4),
        }
        tensors = util.random_tensors(shapes, torch.float64, device)
        window = {"block": 2, "left": 1, "right": 1}
        actual = util.results(op, tensors, window)
        expected = util.results(reference_op, tensors, window)
        util.assert_as_exact_as(actual, expected, expected, 64)
    x = torch.randn(1, 2, 0, 4, device=device)
    cu_seqlens = torch.zeros(1, dtype=torch.int64, device=device)
    assert functional.window_attention(
        x, x, x, block=2, left=0, right=0, cu_seqlens=cu_seqlens
    ).shape == (1, 2, 0, 4)


def test_unbounded_window_is_full_attention(device):
    tensors = util.random_tensors(
        {name: (2, 3, 29, 8) for name in ("query", "key", "value")},
        torch.float64,
        device,
    )
    full = torch.nn.functional.scaled_dot_product_attention
    for causal in (False, True):
        for block in (1, 2**40):
            actual = functional.window_attention(
                **tensors, block=block, left=2**40, right=2**40, causal=causal
            )
            torch.testing.assert_close(
                actual, full(*tensors.values(), is_causal=causal)
            )


def test_lengths_equal_shorter_tensors(device):
    """Spans give what the valid tokens alone give."""
    case = BY_NAME["spans"]
    tensors, arguments = case.tensors(torch.float64, device), case.arguments(device)
    output = functional.window_attention(**tensors, **arguments)
    window = {name: arguments[name] for name in ("block", "left", "right")}
    for b, _, queries, keys in util.rows(case):
        alone = functional.window_attention(
            tensors["query"][b : b + 1, :, queries.start : queries.stop],
            tensors["key"][b : b + 1, :, keys.start : keys.stop],
            tensors["value"][b : b + 1, :, keys.start : keys.stop],
            **window,
        )
        torch.testing.assert_close(
            output[b : b + 1, :, queries.start : queries.stop], alone
        )


def test_packed_rows_equal_rows_alone(device):
    case = BY_NAME["summaries-packed"]
    tensors, arguments = case.tensors(torch.float64, device), case.arguments(device)
    output = functional.window_attention(**tensors, **arguments)
    window = {name: arguments[name] for name in ("block", "left", "right")}
    for _, r, queries, keys in util.rows(case):
        alone = functional.window_attention(
            tensors["query"][:, :, queries.start : queries.stop],
            tensors["key"][:, :, keys.start : keys.stop],
            tensors["value"][:, :, keys.start : keys.stop],
            summary_key=tensors["summary_key"][r : r + 1],
            summary_value=tensors["summary_value"][r : r + 1],
            summary_lengths=arguments["summary_lengths"][r : r + 1],
            **window,
        )
        torch.testing.assert_close(output[:, :, queries.start : queries.stop], alone)


@pytest.mark.parametrize("case", util.CASES, ids=str)
def test_gradient_of_each_argument_alone(case, device):
    """A gradient is the same whichever others are wanted."""
    tensors, arguments = case.tensors(torch.float32, device), case.arguments(device)
    expected = util.results(op, tensors, arguments)
    for name in tensors:
        leaf = tensors[name].detach().requires_grad_()
        output, lse = op(**{**tensors, name: leaf}, **arguments)
        gradients = util.output_gradients(output, lse)
        (grad,) = torch.autograd.grad((output, lse), leaf, gradients)
        util.assert_same_bits(grad, expected[f"grad_{name}"], name=name)


@pytest.mark.parametrize("name", ["block-overlap", "sliding-causal", "all"])
def test_output_alone_and_lse_alone(name, device):
    case = BY_NAME[name]
    tensors, arguments = case.tensors(torch.float64, device), case.arguments(device)
    leaves = {k: v.requires_grad_() for k, v in tensors.items()}
    output, lse = op(**leaves, **arguments)
    util.assert_same_bits(functional.window_attention(**leaves, **arguments), output)
    expected = reference_op(**leaves, **arguments)
    for part, expected_part in zip((output, lse), expected, strict=True):
        gradient = torch.randn_like(part)
        actual_grads, expected_grads = (
            torch.autograd.grad(
                x, list(leaves.values()), gradient, retain_graph=True, allow_unused=True
            )
            for x in (part, expected_part)
        )
        pairs = zip(leaves, actual_grads, expected_grads, strict=True)
        for leaf, actual, wanted in pairs:
            wanted = torch.zeros_like(actual) if wanted is None else wanted
            torch.testing.assert_close(actual, wanted, msg=leaf)


def layouts(x):
    """The same [B, H, L, D] numbers over other strides."""
    B, H, L, D = x.shape
    yield "[L, B, H * D]", x.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3)
    yield "[B, L, H * D]", x.transpose(1, 2).contiguous().transpose(1, 2)
    wide = torch.full((L, B, 3 * H * D + 1), math.nan, dtype=x.dtype, device=x.device)
    view = wide[:, :, H * D + 1 : 2 * H * D + 1].view(L, B, H, D).permute(1, 2, 0, 3)
    view.copy_(x)
    yield "part of a wide projection", view
    gaps = torch.full((B, H, 2 * L, D + 3), math.nan, dtype=x.dtype, device=x.device)
    view = gaps[:, :, ::2, 1 : D + 1]
    view.copy_(x)
    yield "every other row", view


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["all", "all-packed", "sliding-odd-width"])
def test_strides(name, dtype, device):
    """Strides change neither a bit of the results nor, for views, their layout."""
    case = BY_NAME[name]
    tensors, arguments = case.tensors(dtype, device), case.arguments(device)
    expected = util.results(op, tensors, arguments)
    wide = [k for k, v in tensors.items() if v.dim() == 4]
    for views in zip(*(layouts(tensors[k]) for k in wide), strict=True):
        strided = {**tensors, **{k: v for k, (_, v) in zip(wide, views, strict=True)}}
        actual = util.results(op, strided, arguments)
        for key, result in actual.items():
            util.assert_same_bits(result, expected[key], name=f"{views[0][0]}: {key}")
        grads = (
            torch.randn_like(expected["output"]),
            torch.randn_like(expected["lse"]),
        )
        dense = util.results(op, tensors, arguments, grads)
        output_views = [view for _, view in layouts(grads[0])]
        for view in output_views:
            actual = util.results(op, strided, arguments, (view, grads[1]))
            for key, result in actual.items():
                util.assert_same_bits(result, dense[key], name=key)


def test_output_has_the_layout_of_query(device):
    x = torch.randn(2, 3, 7, 4, device=device)
    for name, view in layouts(x):
        if "[" not in name:
            continue
        output = functional.window_attention(view, x, x, block=2, left=2, right=0)
        assert output.stride() == view.stride(), name


def test_expanded_inputs(device):
    """Keys shared by the batch and by heads through strides of 0."""
    query = torch.randn(3, 4, 11, 8, dtype=torch.float64, device=device)
    key = torch.randn(1, 1, 11, 8, dtype=torch.float64, device=device)
    window = {"block": 2, "left": 2, "right": 1}
    shared = {"query": query, "key": key.expand(3, 4, 11, 8)}
    shared["value"] = shared["key"]
    repeated = {name: x.contiguous() for name, x in shared.items()}
    actual = util.results(op, shared, window)
    for name, result in util.results(op, repeated, window).items():
        util.assert_same_bits(actual[name], result, name=name)


@pytest.mark.parametrize("name", ["block-overlap", "all", "all-packed"])
def test_gradient_of_stride_zero(name, device):
    """As ``output.sum().backward()`` makes it."""
    case = BY_NAME[name]
    tensors, arguments = case.tensors(torch.float32, device), case.arguments(device)
    with torch.no_grad():
        output, lse = op(**tensors, **arguments)
    one = torch.ones((), device=device)
    expanded = one.expand(output.shape), one.expand(lse.shape)
    dense = tuple(x.contiguous() for x in expanded)
    actual = util.results(op, tensors, arguments, expanded)
    for key, result in util.results(op, tensors, arguments, dense).items():
        util.assert_same_bits(actual[key], result, name=key)


def test_dropout_state_decides(device):
    """The same state drops the same weights; seed and offset both count."""
    x = torch.randn(1, 2, 40, 8, device=device)
    window = {"block": 8, "left": 8, "right": 0, "dropout": 0.5}

    def run(*state):
        state = torch.tensor(state, device=device)
        return functional.window_attention(x, x, x, **window, dropout_state=state)

    first = run(1, 2)
    assert torch.equal(first, run(1, 2))
    for other in ((2, 2), (1, 3), (1 + 2**40, 2), (1, 2 + 2**40), (-1, 2)):
        assert not torch.equal(first, run(*other))


def test_dropout_keeps_the_mean(device):
    x = torch.randn(1, 1, 64, 8, dtype=torch.float64, device=device)
    window = {"block": 16, "left": 0, "right": 0}
    clean = functional.window_attention(x, x, x, **window)
    total = torch.zeros_like(clean)
    runs = 400
    for offset in range(runs):
        state = torch.tensor([7, offset], device=device)
        total += functional.window_attention(
            x, x, x, **window, dropout=0.2, dropout_state=state
        )
    # Standard deviation of one entry: below 0.5 * |value|, over sqrt(runs).
    assert (total / runs - clean).abs().max() < 6 * 0.5 * 3 / math.sqrt(runs)
    assert (total / runs - clean).abs().mean() < 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_large_logits(dtype, device):
    """The softmax is shifted by its maximum: logits of 1e4 are no trouble."""
    tensors = util.random_tensors(
        {name: (1, 2, 33, 16) for name in ("query", "key", "value")}, dtype, device
    )
    tensors["query"] *= 3000
    window = {"block": 4, "left": 8, "right": 3}
    output, lse = op(**tensors, **window)
    exact = reference_op(**{k: v.double() for k, v in tensors.items()}, **window)
    assert output.isfinite().all()
    torch.testing.assert_close(lse.double(), exact[1], rtol=1e-4, atol=1)
    # Nearly a hard maximum: compare where it is not a tie.
    top = torch.testing.assert_close if dtype == torch.float32 else None
    if top is not None:
        top(output.double(), exact[0], rtol=1e-2, atol=2e-2)


def test_infinite_bias_hides(device):
    """A bias of -inf hides a key; one that hides all leaves an empty query."""
    x = torch.randn(2, 2, 12, 8, dtype=torch.float64, device=device)
    key_bias = torch.zeros(2, 12, dtype=torch.float64, device=device)
    key_bias[0, 3:] = -math.inf
    key_bias[1] = -math.inf
    tensors = {"query": x, "key": x, "value": x, "key_bias": key_bias}
    window = {"block": 4, "left": 4, "right": 0}
    actual = util.results(op, tensors, window)
    expected = util.results(reference_op, tensors, window)
    util.assert_as_exact_as(actual, expected, expected, 64)
    assert (actual["lse"][1] == -math.inf).all()
    assert not actual["output"][1].any()


@st.composite
def cases(draw):
    """A random call, all options of the schema included."""
    heads = draw(st.sampled_from([(1, 1), (2, 1), (2, 2), (3, 1), (4, 2)]))
    packed = draw(st.booleans())
    R = draw(st.integers(1, 3))
    H, Hkv = heads
    L, S = draw(st.integers(0, 40)), draw(st.integers(0, 40))
    C = draw(st.sampled_from([0, 0, 1, 4]))
    options = {"causal": draw(st.booleans())}

    def span_list(size):
        ends = [sorted(draw(st.tuples(*[st.integers(0, size)] * 2))) for _ in range(R)]
        return [a for a, _ in ends], [b - a for a, b in ends]

    def boundaries(size):
        return sorted(
            draw(st.lists(st.integers(0, size), min_size=R + 1, max_size=R + 1))
        )

    if packed:
        options["cu_seqlens"] = boundaries(S)
        if draw(st.booleans()):
            options["query_cu_seqlens"] = boundaries(L)
        else:
            L = S
    else:
        if draw(st.booleans()):
            options["starts"], options["lengths"] = span_list(S)
        if draw(st.booleans()):
            options["query_starts"], options["query_lengths"] = span_list(L)
    if draw(st.booleans()):
        options["query_offset"] = draw(st.integers(-20, 40))
    elif draw(st.booleans()):
        positions = st.lists(st.integers(-9, 50), min_size=L, max_size=L)
        if draw(st.booleans()):
            options["query_position"] = draw(positions)
        else:
            options["query_position"] = [
                draw(positions) for _ in range(1 if packed else R)
            ]
    if C and draw(st.booleans()):
        lengths = st.lists(st.integers(0, C), min_size=R, max_size=R)
        options["summary_lengths"] = draw(lengths)
    if C:
        options["summary_block"] = draw(st.integers(0, 6))
        options["summary_offset"] = draw(st.integers(-3, 4))
        options["summaries_per_block"] = draw(st.integers(0, 3))
    if draw(st.booleans()):
        options["dropout"] = draw(st.sampled_from([0.1, 0.5, 0.9]))
        options["dropout_state"] = [
            draw(st.integers(-(2**63), 2**63 - 1)) for _ in "so"
        ]

    def tables():
        return draw(st.sampled_from([0, 1, H]))

    return util.Case(
        "random",
        draw(st.sampled_from([1, 1, 2, 3, 8, 16])),
        draw(st.sampled_from([0, 1, 3, 8, 50])),
        draw(st.sampled_from([0, 1, 3, 8, 50])),
        B=1 if packed else R,
        H=H,
        Hkv=Hkv,
        L=L,
        S=S,
        D=draw(st.sampled_from([1, 3, 8])),
        M=draw(st.sampled_from([1, 4, 9])),
        C=C,
        bias=tables(),
        key_bias=draw(st.booleans()),
        relative_key=tables(),
        summary_relative_key=tables() if C else 0,
        options=options,
    )


@given(case=cases())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_random_calls(case):
    tensors, arguments = case.tensors(), case.arguments()
    actual = util.results(op, tensors, arguments)
    expected = util.results(reference_op, tensors, arguments)
    util.assert_as_exact_as(actual, expected, expected, 256)
