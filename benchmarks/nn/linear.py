"""LinearAttention as a whole module, and what its projections alone take."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from subquad import nn
from subquad.benchmarks import linear
from subquad.benchmarks.modules import FEATURES, Attention, module_case, peer_module
from subquad.benchmarks.ops.linear_attention import check_sums
from subquad.benchmarks.ops.window_attention import BATCH, HEADS, WIDTH
from subquad.benchmarks.peers import peer
from subquad.benchmarks.registry import Case, Contender, Options, register

KINDS = ("noncausal", "causal")
_FLOOR = 1e-3  # that of the module


@register("LinearAttention", "the module; width 512, 8 heads, B=1, float32", KINDS)
def cases(options: Options) -> Iterator[Case]:
    """Both kinds, every length and pass."""
    for kind in options.chosen(KINDS):
        for length in options.lengths:
            for which in options.passes:
                yield _case(kind, length, which)


def _case(kind: str, length: int, which: str) -> Case:
    causal = kind == "causal"

    def make() -> nn.LinearAttention:
        return nn.LinearAttention(FEATURES, HEADS, causal=causal)

    def plain(_: int, __: torch.dtype) -> Attention:
        def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q = q.softmax(-1) * WIDTH**-0.5
            if causal:
                return linear.causal(q, k.exp(), v, floor=_FLOOR)
            context = torch.einsum("bhsf,bhsm->bhfm", k.softmax(2), v)
            return torch.einsum("bhlf,bhfm->bhlm", q, context)

        return attention

    def linear_attention_transformer() -> torch.nn.Module:
        package = peer("linear-attention-transformer", "linear_attention_transformer")
        if causal:
            check_sums(length)
        module: torch.nn.Module = package.SelfAttention(
            dim=FEATURES, heads=HEADS, causal=causal
        )
        return module

    return module_case(
        "LinearAttention",
        {"kind": kind, "L": length, "pass": which},
        causal,
        make,
        plain,
        linear.scan_flops(BATCH * HEADS, length, WIDTH, WIDTH, which == "both"),
        [
            Contender(
                "linear-attention-transformer",
                peer_module(linear_attention_transformer),
                extra="peers",
                function="the same, but q, k and v have no biases",
            )
        ],
    )
