"""Stateless operators: typed wrappers of ``torch.ops.subquad``.

All of them can be scripted, compiled and exported.
"""

from subquad.functional.cosformer_attention import (
    cosformer_attention,
    cosformer_attention_with_state,
)
from subquad.functional.cosine_weights import cosine_weights
from subquad.functional.efficient_attention import efficient_attention
from subquad.functional.linear_attention import (
    linear_attention,
    linear_attention_with_state,
)
from subquad.functional.mask_to_spans import mask_to_spans
from subquad.functional.merge_attention import merge_attention
from subquad.functional.performer_attention import (
    performer_attention,
    performer_attention_with_state,
)
from subquad.functional.projection import projection
from subquad.functional.random_features import random_features
from subquad.functional.sequence_pool import sequence_pool, sequence_pool_with_lse
from subquad.functional.window_attention import (
    window_attention,
    window_attention_with_lse,
)
from subquad.functional.window_attention_weights import window_attention_weights

__all__ = [
    "cosformer_attention",
    "cosformer_attention_with_state",
    "cosine_weights",
    "efficient_attention",
    "linear_attention",
    "linear_attention_with_state",
    "mask_to_spans",
    "merge_attention",
    "performer_attention",
    "performer_attention_with_state",
    "projection",
    "random_features",
    "sequence_pool",
    "sequence_pool_with_lse",
    "window_attention",
    "window_attention_weights",
    "window_attention_with_lse",
]
