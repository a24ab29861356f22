"""Performer as a whole module, and what its projections alone take."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator

import torch
from torch import Tensor

from subquad import nn
from subquad.benchmarks import linear
from subquad.benchmarks.modules import FEATURES, Attention, module_case, peer_module
from subquad.benchmarks.ops.linear_attention import check_sums
from subquad.benchmarks.ops.window_attention import BATCH, HEADS, WIDTH
from subquad.benchmarks.peers import peer
from subquad.benchmarks.registry import Case, Contender, Options, random, register

KINDS = ("noncausal", "causal")
_DIRECTIONS = 64
# Those of the module.
_FLOOR, _EPS = 0.1, 1e-4 * _DIRECTIONS**-0.5


@register(
    "Performer",
    "the module, 64 positive features; width 512, 8 heads, B=1, float32",
    KINDS,
)
def cases(options: Options) -> Iterator[Case]:
    """Both kinds, every length and pass."""
    for kind in options.chosen(KINDS):
        for length in options.lengths:
            for which in options.passes:
                yield _case(kind, length, which)


def _case(kind: str, length: int, which: str) -> Case:
    causal, backward = kind == "causal", which == "both"
    directions = random((HEADS, _DIRECTIONS, WIDTH), 50)

    def make() -> nn.Performer:
        module = nn.Performer(
            FEATURES,
            HEADS,
            approx_attn_dim=_DIRECTIONS,
            sample_scheme="fixed",
            causal=causal,
        )
        module.random_proj = directions
        return module

    def plain(_: int, dtype: torch.dtype) -> Attention:
        projection = directions.to(dtype)

        def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q, _ = linear.positive_features(q, projection, "token", _EPS, True)
            if not causal:
                k, _ = linear.positive_features(k, projection, "row", _EPS, True)
                return linear.noncausal(q, k, v, _FLOOR)
            k, m = linear.positive_features(k, projection, "prefix", _EPS, True)
            return linear.causal(q, k, v, m, _FLOOR)

        return attention

    def performer_pytorch() -> torch.nn.Module:
        package = peer("performer-pytorch")
        if causal:
            check_sums(length)
        # It prints which of its kernels it found.
        with contextlib.redirect_stdout(io.StringIO()):
            module: torch.nn.Module = package.SelfAttention(
                dim=FEATURES,
                heads=HEADS,
                dim_head=WIDTH,
                nb_features=_DIRECTIONS,
                causal=causal,
            )
        return module

    # A product of queries and of keys with the directions; backward it is repeated
    # and has a gradient.
    products = 6 if backward else 2
    tokens = BATCH * HEADS * length
    return module_case(
        "Performer",
        {"kind": kind, "L": length, "pass": which},
        causal,
        make,
        plain,
        linear.scan_flops(BATCH * HEADS, length, _DIRECTIONS, WIDTH, backward)
        + products * 2 * tokens * WIDTH * _DIRECTIONS,
        [
            Contender(
                "performer-pytorch",
                peer_module(performer_pytorch),
                extra="peers",
                function="another floor and maximum; projections without biases",
            )
        ],
    )
