"""LocalAttention as a whole module, and what its projections alone take."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from subquad import nn
from subquad.benchmarks.modules import (
    FEATURES,
    Attention,
    module_case,
    peer_module,
)
from subquad.benchmarks.ops.window_attention import HEADS, WIDTH, window_flops
from subquad.benchmarks.peers import peer
from subquad.benchmarks.registry import Case, Contender, Options, register
from subquad.benchmarks.windows import Banded, window_of

_KINDS = ("sliding", "causal")


@register("LocalAttention", "the module; width 512, 8 heads, B=1, float32", _KINDS)
def cases(options: Options) -> Iterator[Case]:
    """Every kind but block, window, length and pass."""
    for kind in options.chosen(_KINDS):
        for size in options.windows:
            for length in options.lengths:
                for which in options.passes:
                    yield _case(kind, size, length, which)


def _case(kind: str, size: int, length: int, which: str) -> Case:
    window, causal = window_of(kind, size), kind == "causal"

    def make() -> nn.LocalAttention:
        return nn.LocalAttention(FEATURES, HEADS, window_size=size, causal=causal)

    def plain(length: int, dtype: torch.dtype) -> Attention:
        banded = Banded.of(window, length, 128)
        return (banded.double() if dtype == torch.float64 else banded).einsum

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

    return module_case(
        "LocalAttention",
        {"kind": kind, "window": size, "L": length, "pass": which},
        causal,
        make,
        plain,
        window_flops(window, length, which == "both"),
        [
            Contender(
                "local-attention",
                peer_module(local_mha),
                extra="peers",
                function="LocalMHA, projections without biases",
            )
        ],
    )
