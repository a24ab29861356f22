"""CosformerAttention as a whole module, and what its projections alone take."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from subquad import nn
from subquad.benchmarks import linear
from subquad.benchmarks.modules import FEATURES, Attention, module_case
from subquad.benchmarks.ops.window_attention import BATCH, HEADS, WIDTH
from subquad.benchmarks.registry import Case, Options, register

KINDS = ("noncausal", "causal")


@register("CosformerAttention", "the module; width 512, 8 heads, B=1, float32", KINDS)
def cases(options: Options) -> Iterator[Case]:
    """Both kinds, every length and pass."""
    for kind in options.chosen(KINDS):
        for length in options.lengths:
            for which in options.passes:
                yield _case(kind, length, which)


def _case(kind: str, length: int, which: str) -> Case:
    causal = kind == "causal"

    def make() -> nn.CosformerAttention:
        return nn.CosformerAttention(FEATURES, HEADS, max_length=length, causal=causal)

    def plain(tokens: int, dtype: torch.dtype) -> Attention:
        angle = torch.arange(tokens, dtype=dtype)[:, None] * (math.pi / 2 / length)
        sin, cos = angle.sin(), angle.cos()

        def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q, k = q.relu(), k.relu()
            q, k = (torch.cat([x * sin, x * cos], -1) for x in (q, k))
            return linear.causal(q, k, v) if causal else linear.noncausal(q, k, v)

        return attention

    return module_case(
        "CosformerAttention",
        {"kind": kind, "L": length, "pass": which},
        causal,
        make,
        plain,
        linear.scan_flops(BATCH * HEADS, length, 2 * WIDTH, WIDTH, which == "both"),
    )
