"""Linear attention as the project's functions compute it."""

from torch import Tensor

from subquad import functional
from subquad.errors import UnsupportedPattern


def linear_attn(
    q: Tensor, k: Tensor, v: Tensor, kv_mask: Tensor | None = None
) -> Tensor:
    """Attention with a softmax over the features of queries and the tokens of keys.

    :func:`subquad.functional.efficient_attention` with the project's arguments.

    Args:
        q: ``[B, H, L, D]``.
        k: ``[B, H, S, D]``.
        v: ``[B, H, S, M]``.
        kv_mask: ``[B, S]`` bool, True = there.

    Returns:
        ``[B, H, L, M]``; zeros where a row has no keys.

    Example:
        >>> import torch
        >>> from subquad.compat.linear_attention_transformer import linear_attn
        >>> x = torch.randn(2, 4, 10, 8)
        >>> linear_attn(x, x, x).shape
        torch.Size([2, 4, 10, 8])
    """
    if kv_mask is None:
        return functional.efficient_attention(q, k, v)
    lengths, order = functional.mask_to_spans(~kv_mask)
    return functional.efficient_attention(q, k, v, lengths=lengths, order=order)


def causal_linear_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kv_mask: Tensor | None = None,
    bucket_size: int | None = None,
    eps: float = 1e-3,
) -> Tensor:
    """The causal form, with ``exp`` for the keys' softmax, by buckets of tokens.

    A query sees itself and what comes before where a bucket has one token, else the
    buckets before its own. Masked tokens keep their place in the buckets, and their
    queries are computed. ``exp`` overflows for keys above 88.

    Args:
        q: ``[B, H, L, D]``.
        k: ``[B, H, L, D]``.
        v: ``[B, H, L, M]``.
        kv_mask: ``[B, L]`` bool, True = there.
        bucket_size: Tokens of a bucket, a divisor of L; None: 64, 0: 1.
        eps: The least denominator.

    Returns:
        ``[B, H, L, M]``; zeros for a query that sees nothing.

    Raises:
        UnsupportedPattern: An L that is not made of whole buckets.

    Example:
        >>> import torch
        >>> from subquad.compat.linear_attention_transformer import causal_linear_attn
        >>> x = torch.randn(2, 4, 10, 8)
        >>> causal_linear_attn(x, x, x, bucket_size=1).shape
        torch.Size([2, 4, 10, 8])
    """
    bucket = 64 if bucket_size is None else max(bucket_size, 1)
    length = q.size(2)
    if length % bucket:
        raise UnsupportedPattern(
            f"causal_linear_attn: the length must be a multiple of bucket_size, got "
            f"{length} and {bucket}; subquad.functional.linear_attention takes any"
        )
    if kv_mask is not None:
        absent = ~kv_mask[:, None, :, None]
        k = k.masked_fill(absent, float("-inf"))  # exp gives 0
        v = v.masked_fill(absent, 0.0)
    return functional.linear_attention(
        q,
        k,
        v,
        causal=True,
        blindspot=bucket,
        floor=eps,
        scale=q.size(3) ** -0.5,
        query_map="softmax",
        key_map="exp",
    )
