"""Decoding: one more token through a module, after a number of others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from subquad import functional, nn
from subquad.benchmarks.modules import FEATURES, Linear
from subquad.benchmarks.ops.linear_attention import check_past
from subquad.benchmarks.ops.window_attention import BATCH, HEADS, WIDTH
from subquad.benchmarks.registry import (
    Build,
    Case,
    Contender,
    Options,
    Results,
    Run,
    random,
    register,
)

_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "cosformer": {"max_length": 2**21},
    "local": {"window_size": 64},
    "performer": {"approx_attn_dim": 64},
}
# All but the one whose state grows.
KINDS = tuple(name for name in nn.mechanisms() if name != "softmax")
_PART = 4096
_WEIGHTS = 4 * FEATURES * FEATURES
State = Mapping[str, Tensor | None]


@register(
    "decoding",
    "one more token after L, by a module; width 512, 8 heads, B=1, float32",
    KINDS,
)
def cases(options: Options) -> Iterator[Case]:
    """Every mechanism and length; there is no backward pass."""
    if "forward" in options.passes:
        for kind in options.chosen(KINDS):
            for length in options.lengths:
                yield _case(kind, length)


def _case(kind: str, length: int) -> Case:
    projections = "the four projections alone"
    token = 4 * BATCH * FEATURES
    return Case(
        entry="decoding",
        labels={"kind": kind, "L": length, "pass": "forward"},
        inputs=lambda: (random((1, BATCH, FEATURES), 0),),
        definition=_step(kind, length, torch.float64),
        contenders=(
            Contender("subquad", _step(kind, length)),
            Contender(
                "softmax",
                lambda inputs, _: _softmax(inputs[0], length),
                function="softmax over all keys",
            ),
            Contender(
                "projections", _projections(functional.projection), function=projections
            ),
            Contender("F.linear", _projections(F.linear), function=projections),
        ),
        # Of the projections, which are most of it and the same for all.
        useful_flops=4 * 2 * BATCH * FEATURES * FEATURES,
        touched_bytes=4 * (_WEIGHTS + 2 * token),
        tensor_bytes=4 * token,
    )


def _module(kind: str) -> Any:
    """The same one every time."""
    cls: Any = nn.get_mechanism(kind)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        options = {"causal": True, **_OPTIONS.get(kind, {})}
        return cls(FEATURES, HEADS, **options).eval()


@cache
def _state(kind: str, length: int) -> State:
    """What the library's module keeps after so many tokens."""
    module = _module(kind)
    states: dict[str, State] = {}
    with torch.no_grad():
        for begin in range(0, length, _PART):
            x = random((min(_PART, length - begin), BATCH, FEATURES), begin + 1)
            module(x, incremental_state=states)
    return states[module.name]


def _step(kind: str, length: int, dtype: torch.dtype = torch.float32) -> Build:
    """A step of the library; one in float64 from the same state is the definition."""

    def build(inputs: Results, _: bool) -> Run:
        x, module = inputs[0].to(dtype), _module(kind).to(dtype)
        state = {
            name: x.to(dtype) if x is not None and x.is_floating_point() else x
            for name, x in _state(kind, length).items()
        }
        return _run(module, x, state)

    return build


def _run(module: Any, x: Tensor, state: State) -> Run:
    def run() -> Results:
        with torch.no_grad():
            states = {module.name: dict(state)}
            return (module(x, incremental_state=states)[0],)

    return run


def _softmax(x: Tensor, length: int) -> Run:
    check_past(length)
    shape = (BATCH, HEADS, length, WIDTH)
    state = {
        "prev_key": random(shape, 1),
        "prev_value": random(shape, 2),
        "prev_position": torch.full((BATCH,), length),
    }
    return _run(_module("softmax"), x, state)


def _projections(linear: Linear) -> Build:
    """Three of the token and one of the first of them."""

    def build(inputs: Results, _: bool) -> Run:
        x = inputs[0]
        scale = FEATURES**-0.5
        weights = [random((FEATURES, FEATURES), i) * scale for i in range(4)]
        bias = torch.zeros(FEATURES)

        def run() -> Results:
            with torch.no_grad():
                q, k, v = (linear(x, weight, bias) for weight in weights[:3])
                return linear(q, weights[3], bias), k, v

        return run

    return build
