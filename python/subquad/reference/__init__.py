"""Definitions of the operators in plain PyTorch.

Twins of :mod:`subquad.functional`, written to be read: any dtype, any device,
differentiable to any order, and usable under ``torch.func``. Slow.
"""

from subquad.reference.cosformer_attention import (
    cosformer_attention,
    cosformer_attention_with_state,
    cosine_weights,
)
from subquad.reference.efficient_attention import efficient_attention
from subquad.reference.linear_attention import (
    feature_map,
    linear_attention,
    linear_attention_with_state,
)
from subquad.reference.mask_to_spans import mask_to_spans
from subquad.reference.merge_attention import merge_attention
from subquad.reference.performer_attention import (
    performer_attention,
    performer_attention_with_state,
)
from subquad.reference.philox import keep_mask, philox
from subquad.reference.projection import projection
from subquad.reference.random_features import random_features
from subquad.reference.sequence_pool import sequence_pool, sequence_pool_with_lse
from subquad.reference.window_attention import (
    window_attention,
    window_attention_weights,
    window_attention_with_lse,
)

__all__ = [
    "cosformer_attention",
    "cosformer_attention_with_state",
    "cosine_weights",
    "efficient_attention",
    "feature_map",
    "keep_mask",
    "linear_attention",
    "linear_attention_with_state",
    "mask_to_spans",
    "merge_attention",
    "performer_attention",
    "performer_attention_with_state",
    "philox",
    "projection",
    "random_features",
    "sequence_pool",
    "sequence_pool_with_lse",
    "window_attention",
    "window_attention_weights",
    "window_attention_with_lse",
]
