"""Linear attention: features, causal scans, states."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from subquad import functional, reference
from subquad.reference.token_rows import token_rows
from tests import util
from tests.ops.token_operator import ROW_OPTIONS, ROWS, Case, TokenOperator

op = functional.linear_attention_with_state
STATE = ("state_kv", "state_k", "state_log_scale")


def make(
    name,
    B=2,
    H=2,
    Hkv=0,
    L=17,
    D=5,
    M=6,
    F=0,
    state=False,
    log_scale=False,
    **options,
):
    # In float16 the default floor squared is nothing, which the twin divides by.
    options.setdefault("floor", 0.01)
    rows, Hkv = B, Hkv or H
    if "cu_seqlens" in options:
        B, rows = 1, len(options["cu_seqlens"]) - 1
    shape: dict[str, tuple[int, ...]] = {
        "query": (B, H, L, D),
        "key": (B, Hkv, L, D),
        "value": (B, Hkv, L, M),
    }
    if log_scale:
        shape["key_log_scale"] = (B, Hkv, L)
    if state:
        F = F or D
        shape["state_kv"], shape["state_k"] = (rows, Hkv, F, M), (rows, Hkv, F)
        if log_scale:
            shape["state_log_scale"] = (rows, Hkv)
    return Case(name, shape, options)


MAPS = {
    "identity": {},
    "relu": {"query_map": "relu", "key_map": "relu", "feature_offset": 0.1},
    "elu": {"query_map": "elu", "key_map": "elu"},
    "sigmoid": {"query_map": "sigmoid", "key_map": "sigmoid", "feature_offset": 0.1},
    "softmax-exp": {"query_map": "softmax", "key_map": "exp", "scale": 0.5},
    "dpfp": {"query_map": "dpfp", "key_map": "dpfp", "feature_degree": 2},
}
CASES = [
    *(make(name, **options) for name, options in MAPS.items()),
    *(make(f"{name}-causal", causal=True, **options) for name, options in MAPS.items()),
    *(
        make(f"{name}-{x}", causal=x, **rows)
        for name, rows in ROWS.items()
        for x in (False, True)
    ),
    *(
        make(f"{name}-log-scale", causal=True, log_scale=True, state=True, **rows)
        for name, rows in ROWS.items()
    ),
    *(
        make(f"blindspot-{name}", causal=True, blindspot=4, state=True, **rows)
        for name, rows in ROWS.items()
    ),
    make("blindspot-all", causal=True, blindspot=30),
    make("unnormalized", normalize=False, state=True),
    make("unnormalized-causal", normalize=False, causal=True, log_scale=True),
    make("no-state-lengths", causal=True, log_scale=True, **ROWS["lengths-zero"]),
    make("floor", floor=1.0),
    make("floor-causal", floor=1.0, causal=True, state=True),
    make("state", state=True),
    make("grouped", H=6, Hkv=2, state=True),
    make("grouped-causal", H=6, Hkv=2, causal=True, log_scale=True, state=True),
    make("weights", weights=True, F=10, state=True, query_map="relu", key_map="relu"),
    make("weights-causal", weights=True, causal=True, query_map="elu", key_map="elu"),
    make("weights-order", weights=True, causal=True, **ROWS["order"]),
    make("weights-packed", weights=True, scale=0.7, **ROWS["packed"]),
    make("one-feature", D=1, M=1, causal=True, log_scale=True),
    make("one-token", L=1, causal=True, log_scale=True, state=True),
]
# Several chunks and segments, and what is left over of them.
LARGE_CASES = [
    make(
        "chunks", B=1, L=331, D=64, M=64, causal=True, query_map="relu", key_map="relu"
    ),
    make("chunks-all", B=1, L=331, D=33, M=40, query_map="elu", key_map="elu"),
    make(
        "segments",
        B=1,
        H=1,
        L=1100,
        D=16,
        M=16,
        causal=True,
        state=True,
        log_scale=True,
        query_map="sigmoid",
        key_map="sigmoid",
    ),
    make(
        "segments-all",
        B=1,
        H=1,
        L=1100,
        D=16,
        M=17,
        query_map="sigmoid",
        key_map="sigmoid",
        state=True,
    ),
    make(
        "segments-grouped",
        H=4,
        Hkv=2,
        L=600,
        D=8,
        M=24,
        causal=True,
        lengths=[600, 571],
        starts=[0, 20],
        query_map="relu",
        key_map="relu",
    ),
    make(
        "segments-blindspot",
        B=1,
        H=1,
        L=1100,
        D=9,
        M=8,
        causal=True,
        state=True,
        blindspot=100,
        query_map="softmax",
        key_map="exp",
    ),
    make(
        "segments-packed",
        L=700,
        D=16,
        M=16,
        causal=True,
        log_scale=True,
        state=True,
        query_map="elu",
        key_map="elu",
        cu_seqlens=[0, 1, 50, 50, 600, 699],
    ),
]


def joined(
    query,
    key,
    value,
    operator=op,
    weights=False,
    **arguments,
):
    """Output, and the new state as one tensor; queries have the rows of the keys."""
    if not arguments.get("causal"):
        for name in ROW_OPTIONS:
            if name in arguments:
                arguments[f"query_{name}"] = arguments[name]
    if weights:
        rows = {name: arguments[name] for name in ROW_OPTIONS if name in arguments}
        B, _, L, _ = query.shape
        rank = token_rows(B, L, query.device, **rows)[1]
        rank = rank.to(torch.float64 if query.dtype == torch.float64 else torch.float32)
        table = torch.stack([rank.sin(), rank.cos()], -1)
        arguments["query_weight"] = arguments["key_weight"] = table
    output, *states = operator(query, key, value, **arguments)
    states = [x.flatten(1) for x in states if x.dim() > 1]
    return output, torch.cat(states, 1)


def joined_reference(query, key, value, **arguments):
    return joined(query, key, value, reference.linear_attention_with_state, **arguments)


class LinearAttention(torch.nn.Module):
    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        causal: bool = False,
        blindspot: int = 1,
        normalize: bool = True,
        floor: float = 1e-6,
        scale: float = 1.0,
        query_map: str = "identity",
        key_map: str = "identity",
        feature_offset: float = 0.0,
        feature_degree: int = 1,
        key_log_scale: Tensor | None = None,
        state_kv: Tensor | None = None,
        state_k: Tensor | None = None,
        state_log_scale: Tensor | None = None,
        lengths: Tensor | None = None,
        starts: Tensor | None = None,
        order: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ):
        return functional.linear_attention_with_state(
            query,
            key,
            value,
            causal,
            blindspot,
            normalize,
            floor,
            scale,
            query_map,
            key_map,
            feature_offset,
            feature_degree,
            None,
            None,
            key_log_scale,
            state_kv,
            state_k,
            state_log_scale,
            lengths,
            starts,
            None,
            None,
            order,
            None,
            cu_seqlens,
        )


class TestLinearAttention(TokenOperator):
    public = ("linear_attention", "linear_attention_with_state")
    op = staticmethod(joined)
    reference = staticmethod(joined_reference)
    module = LinearAttention
    per_token = ("query", "key", "value")
    lines = ("key_log_scale",)
    token_outputs = ("output",)
    units = 16

    @pytest.fixture(params=CASES + LARGE_CASES, ids=str)
    def case(self, request):
        return request.param

    @pytest.fixture(params=[c for c in CASES if c.options["floor"] < 1], ids=str)
    def small_case(self, request):
        return request.param

    @pytest.fixture(params=LARGE_CASES, ids=str)
    def large_case(self, request):
        return request.param

    def case_of_length(self, L):
        return make(
            "length",
            L=L,
            causal=True,
            log_scale=True,
            state=True,
            lengths=[L, L // 2],
        )

    def tensors(self, case, dtype=torch.float64, device="cpu", seed=0):
        """Features of one sign where no map makes them so, else denominators vanish."""
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        tensors = super().tensors(case, torch.float64, "cpu", seed)
        if case.options.get("query_map") in (None, "dpfp"):
            for name in ("query", "key"):
                tensors[name] = tensors[name].abs() + 0.1
        for name in {"state_kv", "state_k"} & tensors.keys():
            tensors[name] = tensors[name].abs() + 0.1
        if "key_log_scale" in tensors:
            self._order_log_scales(case, tensors)
        return {
            name: x.to(device, dtype if name in self.per_token else wide)
            for name, x in tensors.items()
        }

    def _order_log_scales(self, case, tensors):
        row, rank = case.rows()
        log_scale = tensors["key_log_scale"]
        for r in range(int(row.max()) + 1):
            b = min(r, row.shape[0] - 1)
            token = (row[b] == r).nonzero().squeeze(1)
            token = token[rank[b, token].argsort()]
            rising = log_scale[b][:, token].cummax(-1).values
            log_scale[b] = log_scale[b].index_copy(1, token, rising)
            if "state_log_scale" in tensors and token.numel():
                tensors["state_log_scale"][r] = rising[:, 0] - 0.3

    def test_opcheck(self, case, device):
        if case.options.get("weights"):
            pytest.skip("the weights are made by the test's own wrapper")
        super().test_opcheck(case, device)

    def test_opcheck_private(self, case, device):
        if case.options.get("weights"):
            pytest.skip("the weights are made by the test's own wrapper")
        arguments = case.arguments(device)
        given = {**self.tensors(case, torch.float32, device), **arguments}
        given["packed"] = "cu_seqlens" in arguments
        spans = None
        if given["packed"]:
            cu = arguments["cu_seqlens"]
            spans = torch.stack([cu[:-1], cu.diff()], 1)
        elif "lengths" in arguments:
            lengths = arguments["lengths"]
            starts = arguments.get("starts", torch.zeros_like(lengths))
            spans = torch.stack([starts, lengths], 1)
        given["query_spans"] = given["key_spans"] = spans
        given["query_order"] = given["key_order"] = arguments.get("order")
        forward = torch.ops.subquad._linear_attention_forward.default
        public = torch.ops.subquad.linear_attention.default._schema.arguments
        defaults = {a.name: a.default_value for a in public if a.has_default_value()}
        names = [a.name for a in forward._schema.arguments]
        inputs = [given.get(name, defaults.get(name)) for name in names]
        torch.library.opcheck(forward, inputs)
        output, denominator, *states = forward(*inputs)
        util.assert_same_bits(output, joined(**given_of(case, given))[0])
        backward = torch.ops.subquad._linear_attention_backward.default
        known = dict(zip(names, inputs, strict=True))
        known["grad_output"] = torch.randn_like(output)
        for name, x in zip(STATE, states, strict=True):
            known[f"grad_{name}"] = torch.randn_like(x) if x.dim() > 1 else None
            known[f"new_{name}"] = x
        known["output"], known["denominator"] = output, denominator
        differentiable = ("query", "key", "value", "key_log_scale", *STATE)
        known["output_mask"] = [name in given for name in differentiable]
        torch.library.opcheck(
            backward, [known[a.name] for a in backward._schema.arguments]
        )

    def test_autocast(self, device):
        case = self.case_of_length(19)
        tensors = self.tensors(case, torch.float32, device)
        arguments = case.arguments(device)
        with torch.autocast(device, torch.bfloat16):
            actual = joined(**tensors, **arguments)
        low = {name: tensors[name].bfloat16() for name in self.per_token}
        expected = joined(**{**tensors, **low}, **arguments)
        for result, wanted in zip(actual, expected, strict=True):
            util.assert_same_bits(result, wanted)

    @pytest.mark.parametrize(
        ("spoiled", "exception", "text"),
        [
            (
                {"query": torch.zeros(2, 7, 5)},
                ValueError,
                r"query must be \[B, H, L, D\], got 3 dimensions",
            ),
            (
                {"query": torch.zeros(2, 2, 7, 5).int()},
                TypeError,
                "query must be float64, float32, bfloat16 or float16, got Int",
            ),
            (
                {"key": torch.zeros(2, 2, 7, 5).half()},
                TypeError,
                "key must have the dtype of query, Float, got Half",
            ),
            (
                {"key": torch.zeros(2, 2, 7, 4)},
                ValueError,
                "axis 3 of key must be D = 5, got 4",
            ),
            (
                {"key": torch.zeros(2, 3, 7, 5), "value": torch.zeros(2, 3, 7, 6)},
                ValueError,
                "the heads of query must be a multiple of those of key, got 2 and 3",
            ),
            (
                {"value": torch.zeros(2, 2, 8, 6)},
                ValueError,
                "axis 2 of value must be S = 7, got 8",
            ),
            (
                {"query": torch.zeros(2, 2, 5, 7).mT},
                ValueError,
                r"the last axis of query must be dense \(stride 1\), got stride 7",
            ),
            (
                {"query": torch.zeros(2, 2, 6, 5)},
                ValueError,
                "causal queries and keys are the same tokens, got L = 6 and S = 7",
            ),
            (
                {"query_lengths": torch.zeros(2).long()},
                ValueError,
                "causal queries and keys are the same tokens, got rows of queries",
            ),
            (
                {"blindspot": 0},
                ValueError,
                r"blindspot must lie in \[1, 1099511627776\], got 0",
            ),
            (
                {"blindspot": 2},
                ValueError,
                "key_log_scale needs causal and a blindspot of 1, got causal 1 and "
                "blindspot 2",
            ),
            (
                {"causal": False, "blindspot": 3},
                ValueError,
                "blindspot needs causal, got blindspot 3",
            ),
            (
                {"floor": -1.0},
                ValueError,
                "floor must be finite and not negative, got -1",
            ),
            ({"scale": math.inf}, ValueError, "scale must be finite, got inf"),
            (
                {"feature_offset": math.nan},
                ValueError,
                "feature_offset must be finite, got nan",
            ),
            (
                {"query_map": "gelu"},
                ValueError,
                "query_map must be identity, relu, elu, sigmoid, exp, softmax or "
                "dpfp, got gelu",
            ),
            ({"key_map": ""}, ValueError, "key_map must be identity, .*, got $"),
            (
                {"key_map": "dpfp"},
                ValueError,
                "query_map and key_map must give as many features, got identity and "
                "dpfp",
            ),
            (
                {"feature_degree": 2},
                ValueError,
                "feature_degree needs the map dpfp, got 2",
            ),
            (
                {"query_map": "dpfp", "key_map": "dpfp", "feature_degree": 10},
                ValueError,
                r"feature_degree must lie in \[1, 2 \* D\), got 10",
            ),
            (
                {"query_weight": torch.zeros(1, 7, 2)},
                ValueError,
                "query_weight and key_weight come together, got only query_weight",
            ),
            (
                {
                    "query_weight": torch.zeros(1, 7, 2),
                    "key_weight": torch.zeros(1, 7, 3),
                },
                ValueError,
                "axis 2 of key_weight must be C = 2, got 3",
            ),
            (
                {
                    "query_weight": torch.zeros(3, 7, 2),
                    "key_weight": torch.zeros(1, 7, 2),
                },
                ValueError,
                "axis 0 of query_weight must be 1 or B = 2, got 3",
            ),
            (
                {
                    "query_weight": torch.zeros(1, 7, 2).double(),
                    "key_weight": torch.zeros(1, 7, 2),
                },
                TypeError,
                "query_weight must be Float where query is Float, got Double",
            ),
            (
                {"key_log_scale": torch.zeros(2, 2, 6)},
                ValueError,
                "axis 2 of key_log_scale must be S = 7, got 6",
            ),
            (
                {"key_log_scale": None},
                ValueError,
                "state_log_scale needs key_log_scale, got none",
            ),
            (
                {"state_log_scale": None},
                ValueError,
                "with key_log_scale a state has a state_log_scale, got none",
            ),
            (
                {"state_k": None},
                ValueError,
                "state_kv and state_k come together, got only state_kv",
            ),
            (
                {"state_kv": torch.zeros(2, 2, 5, 7)},
                ValueError,
                "axis 3 of state_kv must be M = 6, got 7",
            ),
            (
                {"state_kv": torch.zeros(2, 2, 5, 6).double()},
                TypeError,
                "state_kv must be Float where query is Float, got Double",
            ),
            (
                {"state_k": torch.zeros(2, 2, 6)},
                ValueError,
                "axis 2 of state_k must be the number of features = 5, got 6",
            ),
            (
                {"lengths": torch.zeros(3).long()},
                ValueError,
                "axis 0 of lengths must be the batch size = 2, got 3",
            ),
            (
                {"lengths": torch.zeros(2)},
                TypeError,
                "lengths must be int64, got Float",
            ),
        ],
    )
    def test_errors(self, spoiled, exception, text, device):
        case = self.case_of_length(7)
        given = {**self.tensors(case, torch.float32), **case.arguments(), **spoiled}
        given = {k: v for k, v in given.items() if v is not None}
        for where in (device, "meta"):
            placed = {
                k: v.to(where) if torch.is_tensor(v) else v for k, v in given.items()
            }
            with pytest.raises(exception, match=f"^linear_attention: {text}"):
                op(**placed)


def given_of(case, given):
    """The arguments of the public operator."""
    names = {*case.shape, *case.options}
    return {name: x for name, x in given.items() if name in names}


def sequence(L, B=1, H=2, D=16, M=16, dtype=torch.float32, device="cpu"):
    tensors = util.random_tensors(
        {"query": (B, H, L, D), "key": (B, H, L, D), "value": (B, H, L, M)},
        torch.float64,
        device,
    )
    tensors["query"], tensors["key"] = tensors["query"].abs(), tensors["key"].abs()
    return {name: x.to(dtype) for name, x in tensors.items()}


CAUSAL: dict[str, dict[str, Any]] = {
    "plain": {},
    "relu": {"query_map": "relu", "key_map": "relu"},
    "softmax-exp": {"query_map": "softmax", "key_map": "exp"},
    "blindspot-3": {"blindspot": 3},
    "blindspot-48": {"blindspot": 48},
    "log-scale": {"key_log_scale": True},
}


def causal_arguments(name, L, H=2, device="cpu"):
    arguments = {"causal": True, **CAUSAL[name]}
    if arguments.pop("key_log_scale", False):
        generator = torch.Generator().manual_seed(3)
        rising = torch.randn(1, H, L, generator=generator).cummax(-1).values
        arguments["key_log_scale"] = rising.to(device)
    return arguments


@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("L", [64, 577])
def test_nothing_comes_from_the_future(name, poison, L, device):
    """At every cut of 64 tokens, and of several segments: bits of the past stay."""
    tensors, arguments = sequence(L), causal_arguments(name, L, device=device)
    tensors = {k: x.to(device) for k, x in tensors.items()}
    clean = functional.linear_attention(**tensors, **arguments)
    for cut in range(1, L, 1 if L == 64 else 37):
        for spoiled in ("query", "key", "value"):
            worse = {**tensors, spoiled: tensors[spoiled].clone()}
            worse[spoiled][:, :, cut:] = poison
            found = functional.linear_attention(**worse, **arguments)
            util.assert_same_bits(found[:, :, :cut], clean[:, :, :cut])


@pytest.mark.parametrize("name", CAUSAL)
def test_gradients_of_the_past_know_no_future(name, device):
    L = 200
    tensors, arguments = sequence(L), causal_arguments(name, L, device=device)
    tensors = {k: x.to(device) for k, x in tensors.items()}
    grad = torch.randn(1, 2, L, 16).to(device)

    def query_gradient(given):
        leaf = given["query"].detach().requires_grad_()
        output = functional.linear_attention(**{**given, "query": leaf}, **arguments)
        return torch.autograd.grad(output, leaf, grad)[0]

    clean = query_gradient(tensors)
    for cut in (1, 31, 32, 33, 100, 199):
        for spoiled in ("key", "value"):
            worse = {**tensors, spoiled: tensors[spoiled].clone()}
            worse[spoiled][:, :, cut:] = math.nan
            found = query_gradient(worse)
            util.assert_same_bits(found[:, :, :cut], clean[:, :, :cut])


@pytest.mark.parametrize("name", CAUSAL)
def test_earlier_queries_do_not_reach_later_keys(name, device):
    """Key and value gradients come from the queries that see them, and no others."""
    L = 200
    tensors, arguments = sequence(L), causal_arguments(name, L, device=device)
    tensors = {k: x.to(device) for k, x in tensors.items()}
    grad = torch.randn(1, 2, L, 16).to(device)

    def gradients(given, grad):
        leaves = [given[n].detach().requires_grad_() for n in ("key", "value")]
        output = functional.linear_attention(
            given["query"], leaves[0], leaves[1], **arguments
        )
        return torch.autograd.grad(output, leaves, grad)

    clean = gradients(tensors, grad)
    for cut in (1, 31, 32, 33, 100, 199):
        worse = {**tensors, "query": tensors["query"].clone()}
        worse["query"][:, :, :cut] = math.nan
        worse_grad = grad.clone()
        worse_grad[:, :, :cut] = math.nan
        for found, expected in zip(gradients(worse, worse_grad), clean, strict=True):
            util.assert_same_bits(found[:, :, cut:], expected[:, :, cut:])


@pytest.mark.parametrize("causal", [False, True])
def test_where_nan_goes(causal, device):
    """To the queries that see the token, in its own row and head."""
    L, at = 150, 77
    tensors = sequence(L, B=2)
    tensors = {k: x.to(device) for k, x in tensors.items()}
    clean = functional.linear_attention(**tensors, causal=causal)
    tensors["value"][1, 0, at, 3] = math.nan
    found = functional.linear_attention(**tensors, causal=causal)
    spoiled = torch.zeros(2, 2, L, 16, dtype=torch.bool, device=device)
    spoiled[1, 0, at if causal else 0 :, 3] = True
    assert found[spoiled].isnan().all()
    util.assert_same_bits(found, clean, ~spoiled)


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("threads", [2, 3])
def test_one_row_of_one_head_on_many_threads(name, threads, device):
    """Segments at once or one by one: the same bits, forward and backward."""
    L = 2100
    tensors = sequence(L, H=1)
    arguments = causal_arguments(name, L, H=1, device=device)
    tensors = {k: x.to(device) for k, x in tensors.items()}
    before = torch.get_num_threads()
    runs = []
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            runs.append(util.results(joined, tensors, arguments))
    finally:
        torch.set_num_threads(before)
    for key, result in runs[1].items():
        util.assert_same_bits(result, runs[0][key], name=key)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("log_scale", [False, True])
@pytest.mark.parametrize("cuts", [[1], [5, 6, 40], list(range(1, 90))])
def test_prefix_and_steps(cuts, log_scale, dtype, device):
    """Chunk by chunk with the state, or the whole at once."""
    L = 90
    tensors = sequence(L, B=2, dtype=dtype)
    tensors = {k: x.to(device) for k, x in tensors.items()}
    arguments: dict[str, Any] = {"causal": True}
    if log_scale:
        rising = torch.randn(2, 2, L).cummax(-1).values.to(device)
        arguments["key_log_scale"] = rising
    whole = op(**tensors, **arguments)
    state: dict[str, Tensor] = {}
    parts = []
    for begin, end in zip([0, *cuts], [*cuts, L], strict=True):
        given = {k: x[:, :, begin:end] for k, x in tensors.items()}
        if log_scale:
            given["key_log_scale"] = arguments["key_log_scale"][:, :, begin:end]
        output, kv, k, scale = op(**given, causal=True, **state)
        state = {"state_kv": kv, "state_k": k}
        if log_scale:
            state["state_log_scale"] = scale
        parts.append(output)
    found = torch.cat(parts, 2)
    limit = 1e-5 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(found, whole[0], rtol=limit, atol=limit)
    for result, expected in zip(state.values(), whole[1:], strict=False):
        assert result.dtype == torch.float32
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


def test_a_row_of_one_token_beside_a_long_one(device):
    """It is a step, on one thread and where the long row is cut for several."""
    tensors = util.random_tensors(
        {"query": (2, 1, 1100, 8), "key": (2, 1, 1100, 8), "value": (2, 1, 1100, 8)},
        torch.float32,
        device,
    )
    lengths = torch.tensor([1100, 1], device=device)
    maps = {"query_map": "elu", "key_map": "elu", "causal": True}
    before = torch.get_num_threads()
    try:
        runs = []
        for count in (1, 3):
            torch.set_num_threads(count)
            runs.append(op(**tensors, **maps, lengths=lengths))
    finally:
        torch.set_num_threads(before)
    alone = op(**{k: x[1:, :, :1] for k, x in tensors.items()}, **maps)
    for one, several, single in zip(*runs, alone, strict=True):
        util.assert_same_bits(several, one)
        if single.dim() > 1:
            part = one[1:, :, :1] if single is alone[0] else one[1:]
            util.assert_same_bits(part, single)


def test_steps_over_a_long_sequence(device):
    """4096 steps stay within 1e-5 of the parallel form, in float32."""
    L = 4096
    tensors = sequence(L, D=8, M=8)
    tensors = {k: x.to(device) for k, x in tensors.items()}
    whole = functional.linear_attention(**tensors, causal=True)
    kv = torch.zeros(1, 2, 8, 8, device=device)
    k = torch.zeros(1, 2, 8, device=device)
    parts = []
    for t in range(L):
        given = [x[:, :, t : t + 1] for x in tensors.values()]
        output, kv, k, _ = op(*given, causal=True, state_kv=kv, state_k=k)
        parts.append(output)
    torch.testing.assert_close(torch.cat(parts, 2), whole, rtol=1e-5, atol=1e-5)


def test_gradients_through_chunks(device):
    """The state carries gradients back: chunks differentiate as the whole does."""
    L, cut = 70, 33
    tensors = sequence(L, dtype=torch.float64)
    tensors = {k: x.to(device).requires_grad_() for k, x in tensors.items()}
    log_scale = torch.randn(1, 2, L, dtype=torch.float64).cummax(-1).values.to(device)
    log_scale.requires_grad_()
    leaves = [*tensors.values(), log_scale]
    grad = torch.randn(1, 2, L, 16, dtype=torch.float64).to(device)
    whole = functional.linear_attention(
        **tensors, causal=True, key_log_scale=log_scale, floor=0.1
    )
    expected = torch.autograd.grad(whole, leaves, grad)
    first = {k: x[:, :, :cut] for k, x in tensors.items()}
    rest = {k: x[:, :, cut:] for k, x in tensors.items()}
    one, *state = op(
        **first, causal=True, key_log_scale=log_scale[:, :, :cut], floor=0.1
    )
    two = op(
        **rest,
        causal=True,
        key_log_scale=log_scale[:, :, cut:],
        floor=0.1,
        **dict(zip(STATE, state, strict=True)),
    )[0]
    found = torch.autograd.grad(torch.cat([one, two], 2), leaves, grad)
    for actual, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(actual, wanted)


def test_blindspot_continues_at_a_bucket(device):
    L, cut = 90, 42
    tensors = sequence(L, dtype=torch.float64)
    tensors = {k: x.to(device) for k, x in tensors.items()}
    arguments = {"causal": True, "blindspot": 7}
    whole = op(**tensors, **arguments)
    _, *state = op(**{k: x[:, :, :cut] for k, x in tensors.items()}, **arguments)
    rest = op(
        **{k: x[:, :, cut:] for k, x in tensors.items()},
        **arguments,
        state_kv=state[0],
        state_k=state[1],
    )
    torch.testing.assert_close(rest[0], whole[0][:, :, cut:])
    torch.testing.assert_close(rest[1], whole[1])


def test_rows_of_queries_of_their_own(device):
    """Cross-attention: rows of queries and keys differ in length and place."""
    tensors = util.random_tensors(
        {"query": (2, 4, 23, 5), "key": (2, 2, 31, 5), "value": (2, 2, 31, 3)},
        torch.float64,
        device,
    )
    tensors["query"], tensors["key"] = tensors["query"].abs(), tensors["key"].abs()
    order = torch.stack([torch.randperm(31), torch.randperm(31)]).to(device)
    for rows in (
        {"lengths": [20, 0], "query_lengths": [23, 4]},
        {
            "lengths": [20, 3],
            "starts": [11, 2],
            "query_lengths": [3, 4],
            "query_starts": [20, 0],
        },
    ):
        arguments = {k: torch.tensor(v, device=device) for k, v in rows.items()}
        check_against_reference(tensors, arguments)
    arguments = {"lengths": torch.tensor([20, 31], device=device), "order": order}
    check_against_reference(tensors, arguments)


def check_against_reference(tensors, arguments):
    def run(operator, **given):
        output, *states = operator(**given)
        return output, states[0].flatten(1)

    actual = util.results(lambda **x: run(op, **x), tensors, arguments)
    gradients = util.output_gradients(actual["output"], actual["lse"])
    expected = util.results(
        lambda **x: run(reference.linear_attention_with_state, **x),
        tensors,
        arguments,
        gradients,
    )
    util.assert_as_exact_as(actual, expected, expected, 64)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["relu", "softmax-exp", "plain"])
def test_no_overflow(name, dtype, device):
    """|q|, |k| = 50 and 64k tokens in half precision."""
    L = 65536
    generator = torch.Generator().manual_seed(1)
    x = 100 * torch.rand(1, 1, L, 4, generator=generator) - 50
    q, k = x.to(device, dtype), x.flip(2).to(device, dtype)
    if name == "plain":
        q, k = q.abs(), k.abs()
    v = torch.randn(1, 1, L, 4, generator=generator).to(device, dtype)
    for arguments in ({}, causal_arguments(name, L, H=1)):
        maps = {k: v for k, v in CAUSAL[name].items() if k.endswith("map")}
        leaves = [t.requires_grad_() for t in (q, k, v)]
        output = functional.linear_attention(*leaves, **{**maps, **arguments})
        assert output.isfinite().all()
        assert output.abs().max() <= v.abs().max() * 1.01
        for grad in torch.autograd.grad(output.float().square().mean(), leaves):
            assert grad.isfinite().all()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("L", [0, 1, 2, 31, 32, 33, 127])
def test_sizes(L, causal, device):
    tensors = {k: x.to(device) for k, x in sequence(L, dtype=torch.float64).items()}
    check_against_reference(tensors, {"causal": causal})


def test_no_keys(device):
    """Queries alone read a state, or get zeros."""
    q = torch.rand(2, 4, 3, 5, device=device)
    k, v = torch.rand(2, 2, 0, 5, device=device), torch.rand(2, 2, 0, 6, device=device)
    output, kv, sums, _ = op(q, k, v)
    assert not output.any()
    assert not kv.any()
    kv, sums = torch.rand_like(kv), torch.rand_like(sums) + 1
    output, after, _, _ = op(q, k, v, state_kv=kv, state_k=sums)
    util.assert_same_bits(after, kv)
    kv, sums = kv.repeat_interleave(2, 1), sums.repeat_interleave(2, 1)
    expected = (q @ kv) / (q @ sums[..., None])
    torch.testing.assert_close(output, expected)


def test_a_state_outlives_no_tokens(device):
    x = torch.randn(1, 2, 0, 4, device=device)
    state = {
        "state_kv": torch.randn(1, 2, 4, 4, device=device),
        "state_k": torch.randn(1, 2, 4, device=device),
        "state_log_scale": torch.randn(1, 2, device=device),
    }
    log_scale = torch.zeros(1, 2, 0, device=device)
    _, *after = op(x, x, x, causal=True, key_log_scale=log_scale, **state)
    for found, expected in zip(after, state.values(), strict=True):
        util.assert_same_bits(found, expected)


def test_zero_floor_gives_zeros_where_nothing_is_seen(device):
    x = torch.zeros(1, 1, 4, 3, device=device, requires_grad=True)
    output = functional.linear_attention(x, x, x, causal=True, floor=0.0)
    assert not output.any()
    (grad,) = torch.autograd.grad(output.sum(), x)
    assert not grad.any()


def test_output_has_the_layout_of_query(device):
    x = torch.rand(7, 2, 3, 4, device=device).permute(1, 2, 0, 3)  # [L, B, H * D]
    for causal in (False, True):
        output = functional.linear_attention(x, x, x, causal=causal)
        assert output.permute(2, 0, 1, 3).is_contiguous()


def test_spans_outside_the_axis_are_refused():
    x = torch.zeros(2, 1, 7, 4)
    with pytest.raises(ValueError, match=r"must be a span inside .*, got start 3"):
        op(x, x, x, lengths=torch.tensor([7, 5]), starts=torch.tensor([0, 3]))
