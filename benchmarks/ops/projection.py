"""The projection operator against ``torch.nn.functional.linear``."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor
from torch.nn import functional as F

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

WIDTH = 512


@register("projection", "linear layer from 512 to 512 features, float32")
def cases(options: Options) -> Iterator[Case]:
    """Every length and pass."""
    for length in options.lengths:
        for which in options.passes:
            yield _case(length, which)


def _case(length: int, which: str) -> Case:
    products = 3 if which == "both" else 1
    activations, weights = 4 * length * WIDTH, 4 * WIDTH * WIDTH
    return Case(
        entry="projection",
        labels={"L": length, "pass": which},
        inputs=lambda: (
            random((length, WIDTH), 0),
            random((WIDTH, WIDTH), 1) * WIDTH**-0.5,
            random((WIDTH,), 2),
        ),
        definition=_definition,
        contenders=(
            Contender("subquad", _contender(functional.projection)),
            Contender("F.linear", _contender(F.linear)),
        ),
        useful_flops=products * 2 * length * WIDTH * WIDTH,
        touched_bytes=products * (2 * activations + weights),
        tensor_bytes=2 * activations + weights,
    )


def _contender(linear: Callable[..., Tensor]) -> Build:
    def build(inputs: Results, backward: bool) -> Run:
        return differentiated(
            lambda: linear(*inputs), inputs, inputs[0].shape, backward
        )

    return build


def _definition(inputs: Results, backward: bool) -> Run:
    return _contender(F.linear)(tuple(x.detach().double() for x in inputs), backward)
