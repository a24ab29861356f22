"""LocalAttention as a whole module, and what its projections alone take."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from subquad import functional, nn
from subquad.benchmarks.ops.window_attention import (
    BATCH,
    HEADS,
    WIDTH,
    check_softmax,
    window_flops,
)
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
from subquad.benchmarks.windows import Banded, window_of

FEATURES = HEADS * WIDTH
_KINDS = ("sliding", "causal")
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")
Linear = Callable[[Tensor, Tensor, Tensor], Tensor]
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


@register("LocalAttention", "the module; width 512, 8 heads, B=1, float32")
def cases(options: Options) -> Iterator[Case]:
    """Every kind but block, window, length and pass."""
    for kind in options.kinds or _KINDS:
        if kind not in _KINDS:
            continue
        for size in options.windows:
            for length in options.lengths:
                for which in options.passes:
                    yield _case(kind, size, length, which)


def _case(kind: str, size: int, length: int, which: str) -> Case:
    backward = which == "both"
    window = window_of(kind, size)
    products = 12 if backward else 4
    tensor, weights = 4 * BATCH * length * FEATURES, 4 * FEATURES * FEATURES

    def inputs() -> Results:
        x = random((length, BATCH, FEATURES), 0)
        shapes = [(FEATURES, FEATURES), (FEATURES,)] * 4
        scale = FEATURES**-0.5
        drawn = (random(shape, i + 1) * scale for i, shape in enumerate(shapes))
        return (x, *drawn)

    return Case(
        entry="LocalAttention",
        labels={"kind": kind, "window": size, "L": length, "pass": which},
        inputs=inputs,
        definition=_definition(kind, size),
        contenders=_contenders(kind, size, length),
        useful_flops=products * 2 * BATCH * length * FEATURES * FEATURES
        + window_flops(window, length, backward),
        # The projections' input, output and weights in each product, and the
        # attention between them.
        touched_bytes=products * (2 * tensor + weights)
        + (12 if backward else 4) * tensor,
        tensor_bytes=4 * tensor,
        future=Future(axis=0, inputs=1) if window.causal else None,
    )


def _contenders(kind: str, size: int, length: int) -> tuple[Contender, ...]:
    causal = kind == "causal"

    def local() -> nn.LocalAttention:
        return nn.LocalAttention(FEATURES, HEADS, window_size=size, causal=causal)

    def softmax() -> nn.MultiheadAttention:
        check_softmax(length)
        return nn.MultiheadAttention(FEATURES, HEADS, causal=causal)

    def local_mha() -> torch.nn.Module:
        module: torch.nn.Module = peer("local-attention").LocalMHA(
            dim=FEATURES,
            heads=HEADS,
            dim_head=WIDTH,
            window_size=size,
            causal=causal,
            use_rotary_pos_emb=False,
        )
        return module

    def x_transformers() -> torch.nn.Module:
        check_softmax(length)
        module: torch.nn.Module = peer("x-transformers").Attention(
            dim=FEATURES, heads=HEADS, dim_head=WIDTH, causal=causal, flash=True
        )
        return module

    projections = "the four projections alone"
    return (
        Contender("subquad", _module(local)),
        Contender("F.linear in it", _module(local, plain=True)),
        Contender("einsum", _plain(kind, size)),
        Contender(
            "softmax",
            _module(softmax),
            function="softmax over all keys",
            share=("softmax", length, causal),
        ),
        Contender(
            "local-attention",
            _peer(local_mha),
            extra="peers",
            function="LocalMHA, projections without biases",
        ),
        Contender(
            "x-transformers",
            _peer(x_transformers),
            extra="peers",
            function="softmax over all keys, projections without biases",
            share=("x-transformers", length, causal),
        ),
        Contender(
            "projections", _projections(functional.projection), function=projections
        ),
        Contender("F.linear", _projections(F.linear), function=projections),
        Contender("oneDNN", _onednn_products, function=projections),
    )


def _module(
    make: Callable[[], nn.LocalAttention | nn.MultiheadAttention], plain: bool = False
) -> Build:
    """A module with the case's parameters; ``plain``: with ``torch.nn.Linear``."""

    def build(inputs: Results, backward: bool) -> Run:
        x, *parameters = inputs
        module = make()
        leaves = [x]
        for i, name in enumerate(_PROJECTIONS):
            if plain:
                setattr(module, name, torch.nn.Linear(FEATURES, FEATURES))
            linear = getattr(module, name)
            linear.weight = torch.nn.Parameter(parameters[2 * i])
            linear.bias = torch.nn.Parameter(parameters[2 * i + 1])
            leaves += [linear.weight, linear.bias]
        return differentiated(lambda: module(x)[0], leaves, x.shape, backward)

    return build


def _peer(make: Callable[[], torch.nn.Module]) -> Build:
    """A module of another package, batch first and with parameters of its own."""

    def build(inputs: Results, backward: bool) -> Run:
        x, module = inputs[0], make()
        leaves = [x, *module.parameters()]
        return differentiated(
            lambda: module(x.transpose(0, 1)).transpose(0, 1), leaves, x.shape, backward
        )

    return build


def _attend(x: Tensor, parameters: list[Tensor], attention: Attention) -> Tensor:
    """The module's definition over any attention."""
    L, B, _ = x.shape
    wq, bq, wk, bk, wv, bv, wo, bo = parameters
    heads = (
        F.linear(x, w, b).view(L, B, HEADS, WIDTH).permute(1, 2, 0, 3)
        for w, b in ((wq, bq), (wk, bk), (wv, bv))
    )
    output = attention(*heads).permute(2, 0, 1, 3).reshape(L, B, FEATURES)
    return F.linear(output, wo, bo)


def _plain(kind: str, size: int) -> Build:
    def build(inputs: Results, backward: bool) -> Run:
        x, *parameters = inputs
        banded = Banded.of(window_of(kind, size), x.shape[0], 128)
        if x.dtype == torch.float64:
            banded = banded.double()
        return differentiated(
            lambda: _attend(x, parameters, banded.einsum), inputs, x.shape, backward
        )

    return build


def _definition(kind: str, size: int) -> Build:
    def build(inputs: Results, backward: bool) -> Run:
        exact = tuple(x.detach().double() for x in inputs)
        return _plain(kind, size)(exact, backward)

    return build


def _projections(linear: Linear) -> Build:
    """Three projections of x and one of the first, forward and backward."""

    def build(inputs: Results, backward: bool) -> Run:
        x, wq, bq, wk, bk, wv, bv, wo, bo = inputs
        gradient = random(x.shape, 99)

        def forward() -> Results:
            q = linear(x, wq, bq)
            return linear(q, wo, bo), linear(x, wk, bk), linear(x, wv, bv)

        def inference() -> Results:
            with torch.no_grad():
                return forward()

        def both() -> Results:
            outputs = forward()
            return torch.autograd.grad(outputs, inputs, [gradient] * 3)

        if not backward:
            return inference
        for leaf in inputs:
            leaf.requires_grad_()
        return both

    return build


def _onednn_products(inputs: Results, backward: bool) -> Run:
    """The products of the four projections and nothing else, by oneDNN."""
    if not torch._C._has_mkldnn:
        raise UnavailableError("this PyTorch has no oneDNN")
    linear = torch.ops.mkldnn._linear_pointwise
    x, *parameters = inputs
    x = x.flatten(0, 1)
    gradient = random(x.shape, 99)
    pairs = list(zip(parameters[::2], parameters[1::2], strict=True))

    def run() -> Results:
        results = []
        for weight, bias in pairs:
            results.append(linear(x, weight, bias, "none", [], ""))
            if backward:
                results.append(linear(gradient, weight.t(), None, "none", [], ""))
                results.append(linear(gradient.t(), x.t(), None, "none", [], ""))
        return tuple(results)

    return run
