"""Efficient attention."""

import torch
from torch import Tensor


def efficient_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float | None = None,
    lengths: Tensor | None = None,
    starts: Tensor | None = None,
    query_lengths: Tensor | None = None,
    query_starts: Tensor | None = None,
    order: Tensor | None = None,
    query_order: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    query_cu_seqlens: Tensor | None = None,
) -> Tensor:
    r"""Attention whose softmax is taken of queries and keys apart.

    .. math::
        \mathrm{out}_i = \mathtt{scale} \sum_d \mathrm{softmax}_d(q_i)_d
        \sum_n \mathrm{softmax}_n(k_{\cdot d})_n\, v_n

    with n over the valid tokens of the row (Shen et al. 2021, arXiv 1812.01243,
    eq. 4). Time and memory are linear in the length. :func:`sequence_pool` gives the
    inner sum, :func:`linear_attention` the outer; with ``query_map="softmax"`` and
    ``key_map="exp"`` the latter has a causal form.

    Args:
        query: ``[B, H, L, D]``.
        key: ``[B, Hkv, S, D]``, H a multiple of Hkv.
        value: ``[B, Hkv, S, M]``.
        scale: Sum of the weights of a query, default ``D ** -0.5``.
        lengths: ``[B]`` int64, valid tokens of each row of keys. What lies outside is
            never read.
        starts: ``[B]`` int64, index of the first of them, default 0.
        query_lengths: ``[B]`` int64, valid queries of each row.
        query_starts: ``[B]`` int64.
        order: ``[B, S]`` int64, for valid tokens that lie scattered: row b is the
            keys ``order[b, :lengths[b]]``, in this order.
        query_order: ``[B, L]`` int64.
        cu_seqlens: ``[R + 1]`` int64, bounds of R rows packed into a batch of one.
        query_cu_seqlens: ``[R + 1]`` int64, default ``cu_seqlens``.

    Returns:
        ``[B, H, L, M]``; zeros outside the rows and in rows without keys.

    Raises:
        ValueError: A shape, size or span is wrong.
        TypeError: A dtype is wrong.

    Example:
        >>> import torch
        >>> from subquad.functional import efficient_attention
        >>> x = torch.zeros(1, 1, 2, 4)
        >>> v = torch.tensor([1.0, 3.0]).view(1, 1, 2, 1)
        >>> efficient_attention(x, x, v, scale=1.0).flatten().tolist()
        [2.0, 2.0]
    """
    output: Tensor = torch.ops.subquad.efficient_attention(
        query,
        key,
        value,
        scale=scale,
        lengths=lengths,
        starts=starts,
        query_lengths=query_lengths,
        query_starts=query_starts,
        order=order,
        query_order=query_order,
        cu_seqlens=cu_seqlens,
        query_cu_seqlens=query_cu_seqlens,
    )
    return output
