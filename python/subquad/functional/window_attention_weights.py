"""Softmax weights of window attention."""

import torch
from torch import Tensor


def window_attention_weights(
    query: Tensor,
    key: Tensor,
    lse: Tensor,
    block: int,
    left: int,
    right: int,
    causal: bool = False,
    query_offset: int = 0,
    query_position: Tensor | None = None,
    lengths: Tensor | None = None,
    starts: Tensor | None = None,
    query_lengths: Tensor | None = None,
    query_starts: Tensor | None = None,
    order: Tensor | None = None,
    query_order: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    query_cu_seqlens: Tensor | None = None,
    bias: Tensor | None = None,
    key_bias: Tensor | None = None,
    relative_key: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    r"""Weight that each query gives to the key in each slot of its window.

    .. math::
        w_{i, slot} = e^{s_j - \mathtt{lse}_i}, \qquad j = b - \mathtt{left} + slot

    with the logits s of :func:`subquad.functional.window_attention`, and 0 where
    the query sees no key in the slot. With the log-sum-exp of
    :func:`subquad.functional.window_attention_with_lse` the weights of a query sum
    to 1, less what its summaries get.

    For looking at weights: the result is as large as the work, and plain loops
    compute it. Attention itself never needs it.

    Args:
        query: ``[B, H, L, D]``.
        key: ``[B, Hkv, S, D]``.
        lse: ``[B, H, L]``, float32 (float64 for float64).
        block: As for :func:`subquad.functional.window_attention`, like all that
            follow.
        left: See ``block``.
        right: See ``block``.
        causal: See ``block``.
        query_offset: See ``block``.
        query_position: See ``block``.
        lengths: See ``block``.
        starts: See ``block``.
        query_lengths: See ``block``.
        query_starts: See ``block``.
        order: See ``block``.
        query_order: See ``block``.
        cu_seqlens: See ``block``.
        query_cu_seqlens: See ``block``.
        bias: See ``block``.
        key_bias: See ``block``.
        relative_key: See ``block``.
        scale: See ``block``.

    Returns:
        ``[B, H, L, left + block + right]``, differentiable with respect to all
        tensors that are not of integers.

    Raises:
        ValueError: A shape, size or span is wrong.
        TypeError: A dtype is wrong.

    Example:
        >>> import torch
        >>> from subquad import functional
        >>> x, window = torch.zeros(1, 1, 4, 8), dict(block=1, left=1, right=1)
        >>> _, lse = functional.window_attention_with_lse(x, x, x, **window)
        >>> functional.window_attention_weights(x, x, lse, **window)[0, 0, 0].tolist()
        [0.0, 0.5, 0.5]
    """
    weights: Tensor = torch.ops.subquad.window_attention_weights(
        query,
        key,
        lse,
        block=block,
        left=left,
        right=right,
        causal=causal,
        query_offset=query_offset,
        query_position=query_position,
        lengths=lengths,
        starts=starts,
        query_lengths=query_lengths,
        query_starts=query_starts,
        order=order,
        query_order=query_order,
        cu_seqlens=cu_seqlens,
        query_cu_seqlens=query_cu_seqlens,
        bias=bias,
        key_bias=key_bias,
        relative_key=relative_key,
        scale=scale,
    )
    return weights
