"""Softmax pooling of a sequence into slots against plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from subquad import functional
from subquad.benchmarks.registry import (
    Build,
    Case,
    Contender,
    Options,
    Results,
    Run,
    differentiated,
    random,
    register,
)

BATCH, HEADS, WIDTH = 1, 8, 64
_SLOTS = (16, 64)


@register("sequence_pool", "mean of values per slot; B=1, H=8, M=64, float32")
def cases(options: Options) -> Iterator[Case]:
    """Every number of slots, length and pass."""
    for slots in _SLOTS:
        for length in options.lengths:
            for which in options.passes:
                yield _case(slots, length, which)


def _case(slots: int, length: int, which: str) -> Case:
    backward = which == "both"
    tokens = 4 * BATCH * HEADS * length
    # One product of weights and values forward; backward the gradients of both.
    products = 3 if backward else 1
    return Case(
        entry="sequence_pool",
        labels={"slots": slots, "L": length, "pass": which},
        inputs=lambda: (
            random((BATCH, HEADS, length, slots), 0),
            random((BATCH, HEADS, length, WIDTH), 1),
        ),
        definition=_definition,
        contenders=(
            Contender("subquad", _contender(lambda: functional.sequence_pool)),
            Contender("einsum", _contender(lambda: _plain)),
            Contender(
                "einsum compiled",
                _contender(
                    lambda: torch.compile(_plain, fullgraph=True, dynamic=False)
                ),
                extra="compile",
                compiled=True,
            ),
        ),
        useful_flops=products * 2 * BATCH * HEADS * length * slots * WIDTH,
        # Logits and values; backward these again, and their gradients.
        touched_bytes=(3 if backward else 1) * tokens * (slots + WIDTH),
        tensor_bytes=tokens * (slots + WIDTH),
    )


def _plain(logits: Tensor, value: Tensor) -> Tensor:
    return torch.einsum("bhsc,bhsm->bhcm", logits.softmax(2), value)


def _contender(make: Callable[[], Callable[[Tensor, Tensor], Tensor]]) -> Build:
    def build(inputs: Results, backward: bool) -> Run:
        logits, value = inputs
        pool = make()
        shape = (*logits.shape[:2], logits.shape[3], value.shape[3])
        return differentiated(lambda: pool(logits, value), inputs, shape, backward)

    return build


def _definition(inputs: Results, backward: bool) -> Run:
    return _contender(lambda: _plain)(
        tuple(x.detach().double() for x in inputs), backward
    )
