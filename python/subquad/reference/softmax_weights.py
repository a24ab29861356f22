"""Weights of softmax attention, which PyTorch's own operator does not return."""

import math

import torch
from torch import Tensor


def softmax_weights(
    query: Tensor, key: Tensor, mask: Tensor | None = None, causal: bool = False
) -> Tensor:
    """Softmax over all keys.

    Args:
        query: ``[B, H, L, D]``.
        key: ``[B, Hkv, S, D]``; query head h uses head h // (H / Hkv).
        mask: Broadcasts to ``[B, H, L, S]``; bool, True = visible, or float, added to
            the logits.
        causal: Hide key j > i from query i.

    Returns:
        ``[B, H, L, S]``; zeros for a query that sees no key.
    """
    heads = query.size(1) // max(key.size(1), 1)
    key = key.repeat_interleave(heads, 1) if heads > 1 else key
    logits = torch.matmul(query, key.transpose(-2, -1)) / math.sqrt(query.size(-1))
    if causal:
        future = torch.ones_like(logits[0, 0], dtype=torch.bool).triu(1)
        logits = logits.masked_fill(future, float("-inf"))
    if mask is not None:
        if mask.dtype == torch.bool:
            logits = logits.masked_fill(~mask, float("-inf"))
        else:
            logits = logits + mask
    # Before the softmax, whose gradient would be NaN, and after it.
    empty = (logits == float("-inf")).all(-1, keepdim=True)
    return logits.masked_fill(empty, 0.0).softmax(-1).masked_fill(empty, 0.0)
