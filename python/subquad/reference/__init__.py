"""Definitions of the operators in plain PyTorch.

Twins of :mod:`subquad.functional`, written to be read: any dtype, any device,
differentiable to any order, and usable under ``torch.func``. Slow.
"""

from subquad.reference.mask_to_spans import mask_to_spans
from subquad.reference.merge_attention import merge_attention
from subquad.reference.philox import keep_mask, philox
from subquad.reference.projection import projection
from subquad.reference.window_attention import (
    window_attention,
    window_attention_weights,
    window_attention_with_lse,
)

__all__ = [
    "keep_mask",
    "mask_to_spans",
    "merge_attention",
    "philox",
    "projection",
    "window_attention",
    "window_attention_weights",
    "window_attention_with_lse",
]
