"""Whole attention modules: their cases, and what every module is compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from subquad import functional, nn
from subquad.benchmarks.ops.window_attention import (
    BATCH,
    HEADS,
    WIDTH,
    check_softmax,
)
from subquad.benchmarks.peers import peer
from subquad.benchmarks.registry import (
    Build,
    Case,
    Contender,
    Future,
    Results,
    Run,
    UnavailableError,
    differentiated,
    random,
)

FEATURES = HEADS * WIDTH
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")
Linear = Callable[[Tensor, Tensor, Tensor], Tensor]
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
# Of heads [B, H, L, D] for a length and a dtype.
PlainAttention = Callable[[int, torch.dtype], Attention]


def module_case(
    entry: str,
    labels: Mapping[str, str | int],
    causal: bool,
    make: Callable[[], torch.nn.Module],
    plain: PlainAttention,
    attention_flops: int,
    peers: Sequence[Contender] = (),
) -> Case:
    """A case of self-attention from ``[L, B, 512]``, projections included.

    Args:
        entry: Its name.
        labels: With "L" and "pass".
        causal: Whether contenders are tried for leaks.
        make: The library's module of 512 features and 8 heads with four projections,
            which get the case's parameters.
        plain: The attention between the projections in plain PyTorch; in float64 it
            is the definition.
        attention_flops: Its useful operations in this pass.
        peers: Further contenders.
    """
    length, backward = int(labels["L"]), labels["pass"] == "both"
    products = 12 if backward else 4
    tensor, weights = 4 * BATCH * length * FEATURES, 4 * FEATURES * FEATURES
    return Case(
        entry=entry,
        labels=labels,
        inputs=lambda: _inputs(length),
        definition=_definition(plain),
        contenders=_contenders(length, causal, make, plain, peers),
        useful_flops=products * 2 * BATCH * length * FEATURES * FEATURES
        + attention_flops,
        # The projections' input, output and weights in each product, and the
        # attention between them.
        touched_bytes=products * (2 * tensor + weights)
        + (12 if backward else 4) * tensor,
        tensor_bytes=4 * tensor,
        future=Future(axis=0, inputs=1) if causal else None,
    )


def _inputs(length: int) -> Results:
    """The tokens, and weight and bias of each projection."""
    x = random((length, BATCH, FEATURES), 0)
    shapes = [(FEATURES, FEATURES), (FEATURES,)] * 4
    scale = FEATURES**-0.5
    drawn = (random(shape, i + 1) * scale for i, shape in enumerate(shapes))
    return (x, *drawn)


def _contenders(
    length: int,
    causal: bool,
    make: Callable[[], torch.nn.Module],
    plain: PlainAttention,
    peers: Sequence[Contender],
) -> tuple[Contender, ...]:
    def softmax() -> torch.nn.Module:
        check_softmax(length)
        return nn.MultiheadAttention(FEATURES, HEADS, causal=causal)

    def x_transformers() -> torch.nn.Module:
        check_softmax(length)
        module: torch.nn.Module = peer("x-transformers").Attention(
            dim=FEATURES, heads=HEADS, dim_head=WIDTH, causal=causal, flash=True
        )
        return module

    projections = "the four projections alone"
    return (
        Contender("subquad", _module(make)),
        Contender("F.linear in it", _module(make, plain=True)),
        Contender("einsum", _plain(plain)),
        Contender(
            "einsum compiled",
            _plain(plain, compiled=True),
            extra="compile",
            compiled=True,
        ),
        Contender(
            "softmax",
            _module(softmax),
            function="softmax over all keys",
            share=("softmax", length, causal),
        ),
        *peers,
        Contender(
            "x-transformers",
            peer_module(x_transformers),
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


def _module(make: Callable[[], torch.nn.Module], plain: bool = False) -> Build:
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


def peer_module(make: Callable[[], torch.nn.Module]) -> Build:
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


def _plain(plain: PlainAttention, compiled: bool = False) -> Build:
    def build(inputs: Results, backward: bool) -> Run:
        x, *parameters = inputs
        attention = plain(x.shape[0], x.dtype)
        attend = _attend
        if compiled:
            attend = torch.compile(_attend, fullgraph=True, dynamic=False)
        return differentiated(
            lambda: attend(x, parameters, attention), inputs, x.shape, backward
        )

    return build


def _definition(plain: PlainAttention) -> Build:
    def build(inputs: Results, backward: bool) -> Run:
        exact = tuple(x.detach().double() for x in inputs)
        return _plain(plain)(exact, backward)

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
