"""Positive random features against plain PyTorch and a peer."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from subquad import functional
from subquad.benchmarks.linear import positive_features
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

BATCH, HEADS, WIDTH, FEATURES = 1, 8, 64, 64
KINDS = ("token", "row", "prefix")
EPS = 1e-4


@register(
    "random_features",
    "64 positive features, by their maximum; B=1, H=8, D=64, float32",
    KINDS,
)
def cases(options: Options) -> Iterator[Case]:
    """Every range of the maximum, length and pass."""
    for kind in options.chosen(KINDS):
        for length in options.lengths:
            for which in options.passes:
                yield _case(kind, length, which)


def _case(kind: str, length: int, which: str) -> Case:
    backward = which == "both"
    shape = (BATCH, HEADS, length, WIDTH)
    tokens = 4 * BATCH * HEADS * length
    forward = tokens * (WIDTH + FEATURES + 1)
    # Input, features and log scale again, and the gradients of the first two.
    both = forward + tokens * (2 * WIDTH + 2 * FEATURES + 1)
    # Forward one product with the projection; backward that again, for the
    # exponentials, and that of the gradient.
    products = 3 if backward else 1
    return Case(
        entry="random_features",
        labels={"kind": kind, "L": length, "pass": which},
        inputs=lambda: (random(shape, 0), random((1, FEATURES, WIDTH), 1)),
        definition=_definition(kind),
        contenders=_contenders(kind),
        useful_flops=products * 2 * BATCH * HEADS * length * WIDTH * FEATURES,
        touched_bytes=both if backward else forward,
        tensor_bytes=tokens * (WIDTH + FEATURES),
        future=Future(axis=2, inputs=1) if kind != "row" else None,
    )


def _contenders(kind: str) -> tuple[Contender, ...]:
    def ours(x: Tensor, projection: Tensor) -> Tensor:
        return functional.random_features(
            x, projection, stabilizer=kind, stabilizer_gradient=False, eps=EPS
        )[0]

    def plain(x: Tensor, projection: Tensor) -> Tensor:
        return positive_features(x, projection, kind, EPS)[0]

    return (
        Contender("subquad", _contender(lambda: ours)),
        Contender("einsum", _contender(lambda: plain)),
        Contender(
            "einsum compiled",
            _contender(lambda: torch.compile(plain, fullgraph=True, dynamic=False)),
            extra="compile",
            compiled=True,
        ),
        Contender(
            "performer-pytorch",
            _contender(lambda: _performer_pytorch(kind)),
            extra="peers",
        ),
    )


def _contender(make: Callable[[], Callable[[Tensor, Tensor], Tensor]]) -> Build:
    def build(inputs: Results, backward: bool) -> Run:
        x, projection = inputs
        features = make()
        shape = (*x.shape[:3], projection.shape[1])
        return differentiated(lambda: features(x, projection), (x,), shape, backward)

    return build


def _definition(kind: str) -> Build:
    def build(inputs: Results, backward: bool) -> Run:
        exact = tuple(x.detach().double() for x in inputs)
        plain = _contender(lambda: lambda x, w: positive_features(x, w, kind, EPS)[0])
        return plain(exact, backward)

    return build


def _performer_pytorch(kind: str) -> Callable[[Tensor, Tensor], Tensor]:
    if kind == "prefix":
        raise UnavailableError("has no running maximum")
    module = peer("performer-pytorch", "performer_pytorch")

    def features(x: Tensor, projection: Tensor) -> Tensor:
        output: Tensor = module.softmax_kernel(
            x,
            projection_matrix=projection[0],
            is_query=kind == "token",
            eps=EPS * FEATURES**0.5,  # it scales this too
        )
        return output

    return features
