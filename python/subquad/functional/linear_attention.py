"""Linear attention."""

import torch
from torch import Tensor


def linear_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    causal: bool = False,
    blindspot: int = 1,
    normalize: bool = True,
    floor: float = 1e-6,
    scale: float = 1.0,
    query_map: str = "identity",
    key_map: str = "identity",
    feature_offset: float = 0.0,
    feature_degree: int = 1,
    query_weight: Tensor | None = None,
    key_weight: Tensor | None = None,
    key_log_scale: Tensor | None = None,
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
) -> Tensor:
    r"""Attention whose kernel is a product of features.

    .. math::
        \mathrm{out}_i = \frac{c\,\phi_q(q_i)\,S_i}{\max(c\,\phi_q(q_i) \cdot z_i,
        \mathtt{floor})}, \qquad
        S_i = \sum_{j} e^{m_j - m_i} \phi_k(k_j) v_j^\top, \qquad
        z_i = \sum_{j} e^{m_j - m_i} \phi_k(k_j)

    with c = ``scale``, m = ``key_log_scale`` (0 without it), and j over the keys that
    query i sees: all of its row, or, when causal, those up to itself. Time and memory
    are linear in the length.

    Features are ``map(x) + feature_offset``, once for every weight w of the token:
    ``[w_1 f, ..., w_C f]``. Maps: ``"identity"``, ``"relu"``, ``"elu"`` (1 + elu(x)),
    ``"sigmoid"``, ``"exp"``, ``"softmax"`` (over the features) and ``"dpfp"``, of
    ``feature_degree`` (Schlag et al. 2021, arXiv 2102.11174, eq. 37). Sums are kept in
    float32 (float64 for float64), so ``"exp"`` overflows from 88 on.

    Args:
        query: ``[B, H, L, D]``.
        key: ``[B, Hkv, S, D]``, H a multiple of Hkv.
        value: ``[B, Hkv, S, M]``.
        causal: Query i sees the keys up to i; queries and keys are the same tokens.
        blindspot: With causal and a blindspot > 1 a query sees, instead, only the
            complete buckets of so many tokens that lie before its own.
        normalize: Divide by the denominator; else the output is the numerator.
        floor: The least denominator.
        scale: Factor of the queries' features.
        query_map: Map of the queries.
        key_map: Map of the keys.
        feature_offset: Added to the mapped features of queries and keys.
        feature_degree: Of ``"dpfp"``.
        query_weight: ``[1 or B, L, C]``, float32 (float64 for float64), like the
            further ones.
        key_weight: ``[1 or B, S, C]``.
        key_log_scale: ``[B, Hkv, S]``, not decreasing along a row: the logarithm of
            what a key's features are to be multiplied with, such as the log scale of
            :func:`random_features`. Causal attention without blindspot only.
        state_kv: ``[R, Hkv, F, M]``, the sum S that the tokens before left, for each
            of R rows (B, or the packed ones).
        state_k: ``[R, Hkv, F]``, their sum z.
        state_log_scale: ``[R, Hkv]``, their last log scale, with ``key_log_scale``.
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
        >>> from subquad.functional import linear_attention
        >>> x = torch.ones(1, 1, 3, 2)
        >>> v = torch.tensor([1.0, 3.0, 8.0]).view(1, 1, 3, 1)
        >>> linear_attention(x, x, v, causal=True)[0, 0, :, 0].tolist()
        [1.0, 2.0, 4.0]
    """
    output: Tensor = torch.ops.subquad.linear_attention(
        query,
        key,
        value,
        causal=causal,
        blindspot=blindspot,
        normalize=normalize,
        floor=floor,
        scale=scale,
        query_map=query_map,
        key_map=key_map,
        feature_offset=feature_offset,
        feature_degree=feature_degree,
        query_weight=query_weight,
        key_weight=key_weight,
        key_log_scale=key_log_scale,
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
    return output


def linear_attention_with_state(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    causal: bool = False,
    blindspot: int = 1,
    normalize: bool = True,
    floor: float = 1e-6,
    scale: float = 1.0,
    query_map: str = "identity",
    key_map: str = "identity",
    feature_offset: float = 0.0,
    feature_degree: int = 1,
    query_weight: Tensor | None = None,
    key_weight: Tensor | None = None,
    key_log_scale: Tensor | None = None,
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
    """:func:`linear_attention`, and the state after it.

    Passing the state to the next call continues the sequence: a prefix and steps,
    chunk by chunk, or the whole at once give the same. With a blindspot > 1 the state
    sums the row's complete buckets only, and the next call begins with the first
    token that is in none.

    Args:
        query: As for :func:`linear_attention`, like all that follow.
        key: See ``query``.
        value: See ``query``.
        causal: See ``query``.
        blindspot: See ``query``.
        normalize: See ``query``.
        floor: See ``query``.
        scale: See ``query``.
        query_map: See ``query``.
        key_map: See ``query``.
        feature_offset: See ``query``.
        feature_degree: See ``query``.
        query_weight: See ``query``.
        key_weight: See ``query``.
        key_log_scale: See ``query``.
        state_kv: See ``query``.
        state_k: See ``query``.
        state_log_scale: See ``query``.
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
        ``state_log_scale`` in float32 (float64 for float64); the last is empty without
        ``key_log_scale``. All are differentiable.

    Raises:
        ValueError: A shape, size, name or span is wrong.
        TypeError: A dtype is wrong.

    Example:
        >>> import torch
        >>> from subquad.functional import linear_attention_with_state
        >>> x = torch.ones(1, 1, 3, 2)
        >>> _, state_kv, state_k, _ = linear_attention_with_state(x, x, x)
        >>> state_kv.shape, state_k.tolist()
        (torch.Size([1, 1, 2, 2]), [[[3.0, 3.0]]])
    """
    outputs: tuple[Tensor, Tensor, Tensor, Tensor] = (
        torch.ops.subquad.linear_attention_with_state(
            query,
            key,
            value,
            causal=causal,
            blindspot=blindspot,
            normalize=normalize,
            floor=floor,
            scale=scale,
            query_map=query_map,
            key_map=key_map,
            feature_offset=feature_offset,
            feature_degree=feature_degree,
            query_weight=query_weight,
            key_weight=key_weight,
            key_log_scale=key_log_scale,
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
