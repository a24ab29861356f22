import pytest
import torch

from subquad.benchmarks.causality import TOLERANCE, past_change
from subquad.benchmarks.registry import (
    Case,
    Contender,
    Future,
    Options,
    differentiated,
    entries,
    random,
)


def case_of(function):
    def build(inputs, backward):
        return differentiated(lambda: function(*inputs), inputs, (2, 50, 4), backward)

    contender = Contender("made", build)
    case = Case(
        entry="made",
        labels={"L": 50, "pass": "forward"},
        inputs=lambda: (random((2, 50, 4), 0), random((4, 4), 1)),
        definition=build,
        contenders=[contender],
        useful_flops=1,
        touched_bytes=1,
        tensor_bytes=1,
        future=Future(axis=1, inputs=1),
    )
    return case, contender


def prefix_sum(x, weight):
    return x.cumsum(1) @ weight


def stabilised_by_all(x, weight):
    # A maximum over all positions that does not cancel, as in a feature map.
    return ((x - x.amax((1, 2), keepdim=True)).exp() + 1e-4).cumsum(1) @ weight


@pytest.mark.parametrize(
    ("function", "leaks"),
    [
        (prefix_sum, False),
        (lambda x, weight: x @ weight, False),
        (lambda x, weight: x.sum(1, keepdim=True) + x, True),
        (lambda x, weight: x.roll(-1, 1), True),
        (lambda x, weight: x.unflatten(1, (25, 2)).flip(2).flatten(1, 2), True),
        (stabilised_by_all, True),
    ],
)
def test_leaks_are_seen(function, leaks):
    assert (past_change(*case_of(function)) > TOLERANCE) == leaks


def test_parameters_of_a_contender_are_drawn_alike():
    case, _ = case_of(prefix_sum)

    def build(inputs, backward):
        weight = torch.randn(4)
        return lambda: (inputs[0] * weight,)

    assert past_change(case, Contender("drawn", build)) == 0


def test_every_causal_case_has_a_future_and_none_other():
    options = Options(lengths=(64,), windows=(8,))
    for entry in entries().values():
        for case in entry.cases(options):
            kind = str(case.labels.get("kind"))
            # The latter two are stabilisers that see nothing later either.
            causal = kind.startswith("causal") or kind in ("token", "prefix")
            assert (case.future is not None) == causal
            if causal and not case.backward:
                assert past_change(case, case.contenders[0]) == 0
