"""The surface of lucidrains/linear-attention-transformer: its attention functions."""

from subquad.compat.linear_attention_transformer.linear_attention_transformer import (
    causal_linear_attn,
    linear_attn,
)

__all__ = ["causal_linear_attn", "linear_attn"]
