"""Linear attention against plain PyTorch, full softmax attention and peers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from subquad import functional
from subquad.benchmarks import linear
from subquad.benchmarks.ops.window_attention import BATCH, HEADS, WIDTH, softmax
from subquad.benchmarks.peers import peer
from subquad.benchmarks.registry import (
    Build,
    Case,
    Contender,
    Future,
    Options,
    Results,
    Run,
    UnavailableError,
    differentiated,
    random,
    register,
)

# Of query, key and value, and of the log scale in the kind that has one.
Attention = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]

# Given features, but for the third, which maps them; the last has a log scale.
KINDS = ("noncausal", "causal", "causal-relu", "causal-scaled")
_LONG_WIDTH = 32
# Beyond this length every token's own sum takes gigabytes.
_LONGEST_SUMS = 4096
# Beyond this length the keys and values of one token's past take a gigabyte.
_LONGEST_PAST = 2**18
_PAST_PART = 4096


@register(
    "linear_attention",
    "attention by 64 features; B=1, H=8, M=64, float32",
    KINDS,
)
def cases(options: Options) -> Iterator[Case]:
    """Every kind, length and pass."""
    for kind in options.chosen(KINDS):
        for length in options.lengths:
            for which in options.passes:
                yield _case("linear_attention", kind, HEADS, WIDTH, length, which)


@register(
    "linear_attention_long",
    "the same for lengths to a million; B=1, H=1, 32 features, M=32, float32",
    KINDS[:2],
)
def long_cases(options: Options) -> Iterator[Case]:
    """Every kind without a map, length and pass."""
    for kind in options.chosen(KINDS[:2]):
        for length in options.lengths:
            for which in options.passes:
                yield _case(
                    "linear_attention_long", kind, 1, _LONG_WIDTH, length, which
                )


@register(
    "linear_attention_step",
    "one more token after L; B=1, H=8, 64 features, M=64, float32",
)
def step_cases(options: Options) -> Iterator[Case]:
    """Every length; there is no backward pass."""
    if "forward" in options.passes:
        for length in options.lengths:
            yield _step_case(length)


def _case(
    entry: str, kind: str, heads: int, width: int, length: int, which: str
) -> Case:
    backward, scaled = which == "both", kind == "causal-scaled"
    tensor = 4 * BATCH * heads * length * width
    # The normaliser, and the log scale: read, read again, its gradient.
    numbers = 4 * BATCH * heads * length
    forward = 4 * tensor + (2 if scaled else 1) * numbers
    # q, k, v, output and the gradients of all four.
    both = forward + 8 * tensor + (3 if scaled else 1) * numbers
    causal = kind != "noncausal"
    return Case(
        entry=entry,
        labels={"kind": kind, "L": length, "pass": which},
        inputs=lambda: _inputs(kind, (BATCH, heads, length, width)),
        definition=_definition(kind),
        contenders=_contenders(kind, heads, length),
        useful_flops=BATCH * linear.scan_flops(heads, length, width, width, backward),
        touched_bytes=both if backward else forward,
        tensor_bytes=4 * tensor,
        future=Future(axis=2, inputs=4 if scaled else 3) if causal else None,
    )


def _inputs(kind: str, shape: tuple[int, ...]) -> Results:
    """Query, key and value, and what the log scale is a running maximum of."""
    q, k, v = (random(shape, seed) for seed in range(3))
    if kind != "causal-relu":  # features are not negative
        q, k = q.abs_(), k.abs_()
    return (q, k, v, random(shape[:3], 3)) if kind == "causal-scaled" else (q, k, v)


def _contenders(kind: str, heads: int, length: int) -> tuple[Contender, ...]:
    causal = kind != "noncausal"
    plain = _plain(kind)
    share = ("SDPA", length, causal) if heads == HEADS else None
    return (
        Contender("subquad", _contender(lambda _: ours(kind))),
        Contender("einsum", _contender(lambda _: plain)),
        Contender(
            "einsum compiled",
            _contender(lambda _: torch.compile(plain, fullgraph=True, dynamic=False)),
            extra="compile",
            compiled=True,
        ),
        Contender(
            "SDPA",
            _contender(lambda L: _softmax(causal, L)),
            function="softmax over all keys",
            share=share,
        ),
        Contender(
            "fast-transformers",
            _contender(lambda _: _fast_transformers(kind)),
            extra="peers",
        ),
        Contender(
            "performer-pytorch",
            _contender(lambda L: _performer_pytorch(kind, L)),
            extra="peers",
        ),
        Contender(
            "linear-attention-transformer",
            _contender(lambda L: _linear_attention_transformer(kind, L)),
            extra="peers",
            function="its own softmax and exponential features",
        ),
    )


def _contender(attention: Callable[[int], Attention]) -> Build:
    """A build from what makes the attention for a length."""

    def build(inputs: Results, backward: bool) -> Run:
        q, k, v, *rest = inputs
        m = rest[0].cummax(-1).values if rest else None
        attend = attention(q.shape[2])
        leaves = (q, k, v) if m is None else (q, k, v, m)
        return differentiated(lambda: attend(q, k, v, m), leaves, v.shape, backward)

    return build


def ours(kind: str) -> Attention:
    """The operator."""
    name = "relu" if kind == "causal-relu" else "identity"
    return lambda q, k, v, m: functional.linear_attention(
        q,
        k,
        v,
        causal=kind != "noncausal",
        floor=linear.FLOOR,
        query_map=name,
        key_map=name,
        key_log_scale=m,
    )


def _plain(kind: str) -> Attention:
    if kind == "noncausal":
        return lambda q, k, v, _: linear.noncausal(q, k, v)
    if kind == "causal-relu":
        return lambda q, k, v, _: linear.causal(q.relu(), k.relu(), v)
    return linear.causal


def _definition(kind: str) -> Build:
    """The benchmark reference in float64, head by head to spare memory."""
    plain = _plain(kind)

    def attend(q: Tensor, k: Tensor, v: Tensor, m: Tensor | None) -> Tensor:
        heads = [slice(h, h + 1) for h in range(q.shape[1])]
        return torch.cat(
            [
                plain(q[:, h], k[:, h], v[:, h], None if m is None else m[:, h])
                for h in heads
            ],
            1,
        )

    def build(inputs: Results, backward: bool) -> Run:
        exact = tuple(x.detach().double() for x in inputs)
        return _contender(lambda _: attend)(exact, backward)

    return build


def _softmax(causal: bool, length: int) -> Attention:
    attend = softmax(causal, length)

    def attention(q: Tensor, k: Tensor, v: Tensor, m: Tensor | None) -> Tensor:
        output = attend(q, k, v)
        # In the graph, for the gradient that is asked for.
        return output if m is None else output + 0 * m[..., None]

    return attention


def _fast_transformers(kind: str) -> Attention:
    if kind not in ("causal", "causal-relu"):
        raise UnavailableError("a causal product without log scales")
    product = peer("pytorch-fast-transformers", "causal_product").causal_dot_product

    def attention(q: Tensor, k: Tensor, v: Tensor, _: Tensor | None) -> Tensor:
        if kind == "causal-relu":
            q, k = q.relu(), k.relu()
        denominator = torch.einsum("bhlf,bhlf->bhl", q, k.cumsum(2))
        numerator: Tensor = product(q, k, v)
        return numerator / (denominator + linear.FLOOR)[..., None]

    return attention


def _performer_pytorch(kind: str, length: int) -> Attention:
    if kind == "causal-scaled":
        raise UnavailableError("no log scales")
    module = peer("performer-pytorch", "performer_pytorch")
    if kind == "noncausal":
        return lambda q, k, v, _: module.linear_attention(q, k, v)
    check_sums(length)
    attend = module.causal_linear_attention_noncuda
    if kind == "causal-relu":
        return lambda q, k, v, _: attend(q.relu(), k.relu(), v)
    return lambda q, k, v, _: attend(q, k, v)


def _linear_attention_transformer(kind: str, length: int) -> Attention:
    if kind not in ("noncausal", "causal"):
        raise UnavailableError("no log scales and no other features")
    module = peer("linear-attention-transformer", "linear_attention_transformer")
    if kind == "noncausal":
        return lambda q, k, v, _: module.linear_attn(q, k, v)
    check_sums(length)
    return lambda q, k, v, _: module.causal_linear_attn(q, k, v, bucket_size=1)


def check_sums(length: int) -> None:
    """Refuse a sum of products for every token where it takes too much memory.

    Raises:
        UnavailableError: The length.
    """
    if length > _LONGEST_SUMS:
        raise UnavailableError(
            f"not run beyond L = {_LONGEST_SUMS}: L x F x M numbers of memory"
        )


def _step_case(length: int) -> Case:
    token = 4 * BATCH * HEADS * WIDTH
    state = token * (WIDTH + 1)
    return Case(
        entry="linear_attention_step",
        labels={"L": length, "pass": "forward"},
        inputs=lambda: _step_inputs(length),
        definition=_step_definition,
        contenders=(
            Contender("subquad", _our_step),
            Contender("einsum", lambda inputs, _: _plain_step(inputs)),
            Contender(
                "einsum compiled",
                lambda inputs, _: _plain_step(inputs, compiled=True),
                extra="compile",
                compiled=True,
            ),
            Contender(
                "SDPA",
                lambda inputs, _: _softmax_step(inputs[0], length),
                function="softmax over all keys, which lie in place",
            ),
        ),
        useful_flops=BATCH * linear.scan_flops(HEADS, 1, WIDTH, WIDTH, False),
        touched_bytes=4 * token + 2 * state,
        tensor_bytes=4 * token + state,
    )


def _step_inputs(length: int) -> Results:
    """A token's query, key and value, and the sums of those before it."""
    shape = (BATCH, HEADS, 1, WIDTH)
    q, k, v = (random(shape, seed) for seed in range(3))
    kv, k_sum = _sums(length)
    return q.abs_(), k.abs_(), v, kv.clone(), k_sum.clone()


@cache
def _sums(length: int) -> tuple[Tensor, Tensor]:
    kv = torch.zeros(BATCH, HEADS, WIDTH, WIDTH)
    k_sum = torch.zeros(BATCH, HEADS, WIDTH)
    for begin in range(0, length, _PAST_PART):
        shape = (BATCH, HEADS, min(_PAST_PART, length - begin), WIDTH)
        k, v = random(shape, 2 * begin + 3).abs_(), random(shape, 2 * begin + 4)
        kv += k.mT @ v
        k_sum += k.sum(2)
    return kv, k_sum


def _our_step(inputs: Results, _: bool) -> Run:
    q, k, v, kv, k_sum = inputs

    def run() -> Results:
        with torch.no_grad():
            output, new_kv, new_k_sum, _ = functional.linear_attention_with_state(
                q, k, v, causal=True, state_kv=kv, state_k=k_sum, floor=linear.FLOOR
            )
        return output, new_kv, new_k_sum

    return run


def _plain_step(inputs: Results, compiled: bool = False) -> Run:
    q, k, v, kv, k_sum = inputs
    step = linear.step
    if compiled:
        step = torch.compile(step, fullgraph=True, dynamic=False)

    def run() -> Results:
        with torch.no_grad():
            return step(q, k, v, kv, k_sum)

    return run


def _step_definition(inputs: Results, _: bool) -> Run:
    return _plain_step(tuple(x.double() for x in inputs))


def check_past(length: int) -> None:
    """Refuse to keep the keys and values of all tokens where they are too many.

    Raises:
        UnavailableError: The length.
    """
    if length > _LONGEST_PAST:
        raise UnavailableError(
            f"not run beyond L = {_LONGEST_PAST}: gigabytes of keys and values"
        )


def _softmax_step(q: Tensor, length: int) -> Run:
    check_past(length)
    shape = (BATCH, HEADS, length + 1, WIDTH)
    k, v = random(shape, 1), random(shape, 2)

    def run() -> Results:
        with torch.no_grad():
            return (F.scaled_dot_product_attention(q, k, v),)

    return run
