"""Attention through random features."""

import torch
from torch import Tensor


def performer_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    projection: Tensor,
    causal: bool = False,
    kind: str = "positive",
    eps: float | None = None,
    stabilizer_gradient: bool = True,
    floor: float = 0.1,
    scale: float | None = None,
    query_weight: Tensor | None = None,
    key_weight: Tensor | None = None,
    lengths: Tensor | None = None,
    starts: Tensor | None = None,
    query_lengths: Tensor | None = None,
    query_starts: Tensor | None = None,
    order: Tensor | None = None,
    query_order: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    query_cu_seqlens: Tensor | None = None,
) -> Tensor:
    r"""Softmax attention, estimated by random features in linear time.

    .. math::
        \mathrm{out}_i = \frac{\phi(q_i)\,\sum_j \phi(k_j) v_j^\top}
        {\max(\phi(q_i) \cdot \sum_j \phi(k_j), \mathtt{floor})}

    (Choromanski et al. 2021, arXiv 2009.14794, equation 4), with j over the keys of
    the row, or, when causal, those up to i, and the features
    :math:`\phi` of :func:`random_features`. Those with an exponential are divided by
    its maximum, which is the token's own for queries and that of the row for keys.
    Causal keys take the maximum so far, and sums are rescaled as it grows, so that
    nothing comes from the future.

    Args:
        query: ``[B, H, L, D]``.
        key: ``[B, Hkv, S, D]``, H a multiple of Hkv.
        value: ``[B, Hkv, S, M]``.
        projection: ``[Hkv, R, D]``, random directions of each key head and the query
            heads that belong to it.
        causal: Query i sees the keys up to i; queries and keys are the same tokens.
        kind: Of the features: ``"positive"``, ``"trigonometric"``, ``"sincos"`` or
            ``"relu"``.
        eps: Added to every feature; default ``1e-4 * R ** -0.5`` for
            ``"positive"``, 1e-3 for ``"relu"``, else 0.
        stabilizer_gradient: Whether gradients flow through the maxima.
        floor: The least denominator.
        scale: Of queries and keys, default ``D ** -0.25``.
        query_weight: ``[1 or B, L, C]``, for C copies of the features, as for
            :func:`linear_attention`.
        key_weight: ``[1 or B, S, C]``.
        lengths: ``[B]`` int64, valid tokens of each row of keys, and of queries when
            causal. What lies outside is never read.
        starts: ``[B]`` int64, index of the first of them, default 0.
        query_lengths: ``[B]`` int64, valid queries of each row when not causal.
        query_starts: ``[B]`` int64.
        order: ``[B, S]`` int64, for valid tokens that lie scattered: row b is the
            keys ``order[b, :lengths[b]]``, in this order.
        query_order: ``[B, L]`` int64.
        cu_seqlens: ``[R + 1]`` int64, bounds of R rows packed into a batch of one.
        query_cu_seqlens: ``[R + 1]`` int64, default ``cu_seqlens``.

    Returns:
        ``[B, H, L, M]``; zeros for a query that sees nothing.

    Raises:
        ValueError: A shape, size, name or span is wrong.
        TypeError: A dtype is wrong.

    Example:
        >>> import torch
        >>> from subquad.functional import performer_attention
        >>> q, k, v = torch.randn(3, 1, 2, 9, 4).unbind()
        >>> performer_attention(q, k, v, torch.randn(2, 16, 4), causal=True).shape
        torch.Size([1, 2, 9, 4])
    """
    output: Tensor = torch.ops.subquad.performer_attention(
        query,
        key,
        value,
        projection,
        causal=causal,
        kind=kind,
        eps=eps,
        stabilizer_gradient=stabilizer_gradient,
        floor=floor,
        scale=scale,
        query_weight=query_weight,
        key_weight=key_weight,
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


def performer_attention_with_state(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    projection: Tensor,
    causal: bool = False,
    kind: str = "positive",
    eps: float | None = None,
    stabilizer_gradient: bool = True,
    floor: float = 0.1,
    scale: float | None = None,
    query_weight: Tensor | None = None,
    key_weight: Tensor | None = None,
    state_kv: Tensor | None = None,
    state_k: Tensor | None = None,
    state_log_scale: Tensor | None = None,
    lengths: Tensor | None = None,
    starts: Tensor | None = None,
    query_lengths: Tensor | None = None,
    query_starts: Tensor | None = None,
    order: Tensor | None = None,
    query_order: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    query_cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """:func:`performer_attention`, and the state after it.

    Passing the state of causal attention to the next call continues the sequence.
    Otherwise the state is that of complete rows: further queries look them up with no
    keys of their own.

    Args:
        query: As for :func:`performer_attention`, like all that
            follow.
        key: See ``query``.
        value: See ``query``.
        projection: See ``query``.
        causal: See ``query``.
        kind: See ``query``.
        eps: See ``query``.
        stabilizer_gradient: See ``query``.
        floor: See ``query``.
        scale: See ``query``.
        query_weight: See ``query``.
        key_weight: See ``query``.
        state_kv: ``[rows, Hkv, F, M]``, the sums of feature times value that earlier
            tokens left, with F features for each key.
        state_k: ``[rows, Hkv, F]``, their sums of features.
        state_log_scale: ``[rows, Hkv]``, the maximum so far, when causal.
        lengths: See ``query``.
        starts: See ``query``.
        query_lengths: See ``query``.
        query_starts: See ``query``.
        order: See ``query``.
        query_order: See ``query``.
        cu_seqlens: See ``query``.
        query_cu_seqlens: See ``query``.

    Returns:
        Output ``[B, H, L, M]``, and the new ``state_kv``, ``state_k`` and
        ``state_log_scale`` in float32 (float64 for float64); the last is empty where
        there is no running maximum.

    Raises:
        ValueError: A shape, size, name or span is wrong; keys that continue complete
            rows.
        TypeError: A dtype is wrong.

    Example:
        >>> import torch
        >>> from subquad.functional import performer_attention_with_state
        >>> x, projection = torch.randn(1, 2, 9, 4), torch.randn(2, 16, 4)
        >>> _, *state = performer_attention_with_state(x, x, x, projection)
        >>> none = x[:, :, :0]
        >>> performer_attention_with_state(
        ...     x, none, none, projection, state_kv=state[0], state_k=state[1]
        ... )[0].shape
        torch.Size([1, 2, 9, 4])
    """
    outputs: tuple[Tensor, Tensor, Tensor, Tensor] = (
        torch.ops.subquad.performer_attention_with_state(
            query,
            key,
            value,
            projection,
            causal=causal,
            kind=kind,
            eps=eps,
            stabilizer_gradient=stabilizer_gradient,
            floor=floor,
            scale=scale,
            query_weight=query_weight,
            key_weight=key_weight,
            state_kv=state_kv,
            state_k=state_k,
            state_log_scale=state_log_scale,
            lengths=lengths,
            starts=starts,
            query_lengths=query_lengths,
            query_starts=query_starts,
            order=order,
            query_order=query_order,
            cu_seqlens=cu_seqlens,
            query_cu_seqlens=query_cu_seqlens,
        )
    )
    return outputs
