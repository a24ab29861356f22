"""Stateless operators: typed wrappers of ``torch.ops.subquad``.

All of them can be scripted, compiled and exported.
"""

from subquad.functional.mask_to_spans import mask_to_spans
from subquad.functional.merge_attention import merge_attention
from subquad.functional.projection import projection
from subquad.functional.window_attention import (
    window_attention,
    window_attention_with_lse,
)
from subquad.functional.window_attention_weights import window_attention_weights

__all__ = [
    "mask_to_spans",
    "merge_attention",
    "projection",
    "window_attention",
    "window_attention_weights",
    "window_attention_with_lse",
]
