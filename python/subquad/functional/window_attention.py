"""Softmax attention over windows of keys and shared summaries."""

import torch
from torch import Tensor


def window_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
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
    summary_key: Tensor | None = None,
    summary_value: Tensor | None = None,
    summary_lengths: Tensor | None = None,
    summary_offset: int = 0,
    summary_block: int = 0,
    summaries_per_block: int = 1,
    summary_relative_key: Tensor | None = None,
    dropout: float = 0.0,
    dropout_state: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    r"""Softmax attention over a window of keys and, optionally, shared summaries.

    A query at position p lies in the block that begins at
    b = floor(p / block) * block. It sees the keys j of its row with
    b - left <= j < b + block + right, and j <= p if causal; the slot of such a key
    is j - (b - left). So ``block=1`` is a sliding window, and ``left=right=0`` is
    attention within blocks. Of the summaries it sees the first

    .. math::
        c(p) = \min(\max(\mathtt{summary\_offset}
            + \lfloor p / \mathtt{summary\_block} \rfloor
            \, \mathtt{summaries\_per\_block}, 0), C)

    or all of them if ``summary_block`` is 0. There is one softmax over the logits
    of both:

    .. math::
        s_j &= \mathtt{scale} \, q \cdot k_j + \mathtt{bias}_{p - b, slot}
            + \mathtt{key\_bias}_j + q \cdot \mathtt{relative\_key}_{slot} \\
        \hat s_c &= \mathtt{scale} \, q \cdot \hat k_c
            + q \cdot \mathtt{summary\_relative\_key}_{c(p) - 1 - c}

    A row is a span of valid tokens, and positions count from the first of them:
    query i is at i - query start + ``query_offset``. What lies outside of a row is
    never read into a result, NaN and Inf included. A query that sees nothing, or
    that is no valid token, gets zeros and gives zero gradients.

    Time and memory are linear in L. The gradients cannot be differentiated again,
    nor is there support for ``torch.func``: see :mod:`subquad.reference` for both.

    Args:
        query: ``[B, H, L, D]``; float64, float32, bfloat16 or float16 like all
            tensors that are not of integers. Any strides, but the last axis of
            this and of all other tensors is dense.
        key: ``[B, Hkv, S, D]``; query head h uses head h // (H / Hkv).
        value: ``[B, Hkv, S, M]``.
        block: Length of a block, at least 1.
        left: Number of keys seen before the block.
        right: Number of keys seen after the block.
        causal: Whether a query sees no key after its own position.
        query_offset: Position of the first query of each row.
        query_position: Position of each query instead, ``[L]`` or ``[B, L]``
            int64, in any order.
        lengths: Number of valid keys of each row, ``[B]`` int64; default S.
        starts: Index of the first of them, ``[B]`` int64; default 0.
        query_lengths: Number of valid queries of each row, ``[B]`` int64;
            default L.
        query_starts: Index of the first of them, ``[B]`` int64; default 0.
        order: Indices of the valid keys, ``[B, S]`` int64, where they do not lie
            one after the other: row b is the tokens ``order[b, :lengths[b]]`` in
            that order, as :func:`subquad.functional.mask_to_spans` gives them.
            Needs ``lengths``, excludes ``starts``. Positions are ranks in the row;
            ``key_bias`` and ``query_position`` stay indexed by the tensors' axes.
        query_order: The same for queries, ``[B, L]`` int64; needs
            ``query_lengths``.
        cu_seqlens: Boundaries of R rows packed one after the other into a batch
            of 1, ``[R + 1]`` int64.
        query_cu_seqlens: The same for queries, ``[R + 1]`` int64; default
            ``cu_seqlens``.
        bias: ``[1 or H, block, left + block + right]``.
        key_bias: ``[B, S]``.
        relative_key: ``[1 or H, left + block + right, D]``.
        summary_key: ``[B, Hkv, C, D]``; ``[R, Hkv, C, D]`` for packed rows.
        summary_value: ``[B, Hkv, C, M]``; ``[R, Hkv, C, M]`` for packed rows.
        summary_lengths: Number of valid summaries of each row, ``[B]`` or ``[R]``
            int64; default C.
        summary_offset: Number of summaries that the first block sees.
        summary_block: Number of positions after which more summaries are seen;
            0 shows all to every query.
        summaries_per_block: How many more.
        summary_relative_key: ``[1 or H, C or more, D]``.
        dropout: Probability of dropping a weight; kept ones are divided by
            1 - dropout.
        dropout_state: Seed and offset of the random numbers, ``[2]`` int64;
            needed when ``dropout`` is not 0. Weight n of all, counted in
            ``[B, H, L, S + C]``, depends on seed, offset and n alone. Tokens count
            by their index, or by their rank in rows that are no span.
        scale: Factor of the dot products; default D ** -0.5.

    Returns:
        ``[B, H, L, M]``, its axes in memory in the order of those of ``query``.

    Raises:
        ValueError: A shape, size, span or device is wrong.
        TypeError: A dtype is wrong.

    Example:
        >>> import torch
        >>> from subquad.functional import window_attention
        >>> x = torch.randn(2, 4, 1000, 32)
        >>> y = window_attention(x, x, x, block=1, left=127, right=0, causal=True)
        >>> y.shape
        torch.Size([2, 4, 1000, 32])

    References:
        Beltagy, Peters and Cohan, 2020, "Longformer: the long-document
        transformer", arXiv:2004.05150 (sliding windows). Zhu et al., 2021,
        "Long-short transformer", arXiv:2107.02192 (one softmax over a window and
        summaries). Zheng et al., 2023, "Efficient attention via control
        variates", arXiv:2302.04542 (the same, with summaries of chunks).
    """
    output: Tensor = torch.ops.subquad.window_attention(
        query,
        key,
        value,
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
        summary_key=summary_key,
        summary_value=summary_value,
        summary_lengths=summary_lengths,
        summary_offset=summary_offset,
        summary_block=summary_block,
        summaries_per_block=summaries_per_block,
        summary_relative_key=summary_relative_key,
        dropout=dropout,
        dropout_state=dropout_state,
        scale=scale,
    )
    return output


def window_attention_with_lse(
    query: Tensor,
    key: Tensor,
    value: Tensor,
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
    summary_key: Tensor | None = None,
    summary_value: Tensor | None = None,
    summary_lengths: Tensor | None = None,
    summary_offset: int = 0,
    summary_block: int = 0,
    summaries_per_block: int = 1,
    summary_relative_key: Tensor | None = None,
    dropout: float = 0.0,
    dropout_state: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Window attention and the log-sum-exp of its logits.

    With it, attention over disjoint sets of keys can be merged
    (:func:`subquad.functional.merge_attention`). Arguments and exceptions are those
    of :func:`window_attention`.

    Returns:
        Output ``[B, H, L, M]``, and log-sum-exp ``[B, H, L]`` in float32 (float64
        for float64), -inf for a query that sees nothing. Both are differentiable;
        dropout leaves the log-sum-exp as it is.

    Example:
        >>> import torch
        >>> from subquad.functional import window_attention_with_lse
        >>> x = torch.zeros(1, 1, 6, 8)
        >>> _, lse = window_attention_with_lse(x, x, x, block=3, left=0, right=0)
        >>> lse.exp().round().tolist()
        [[[3.0, 3.0, 3.0, 3.0, 3.0, 3.0]]]
    """
    outputs: tuple[Tensor, Tensor] = torch.ops.subquad.window_attention_with_lse(
        query,
        key,
        value,
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
        summary_key=summary_key,
        summary_value=summary_value,
        summary_lengths=summary_lengths,
        summary_offset=summary_offset,
        summary_block=summary_block,
        summaries_per_block=summaries_per_block,
        summary_relative_key=summary_relative_key,
        dropout=dropout,
        dropout_state=dropout_state,
        scale=scale,
    )
    return outputs
