"""Attention that prefers near tokens by a cosine of their distance."""

import torch
from torch import Tensor


def cosformer_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    causal: bool = False,
    activation: str = "relu",
    max_length: int | None = None,
    query_position: Tensor | None = None,
    key_position: Tensor | None = None,
    floor: float = 1e-6,
    lengths: Tensor | None = None,
    starts: Tensor | None = None,
    query_lengths: Tensor | None = None,
    query_starts: Tensor | None = None,
    order: Tensor | None = None,
    query_order: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    query_cu_seqlens: Tensor | None = None,
) -> Tensor:
    r"""Linear attention reweighted by the cosine of the distance.

    .. math::
        \mathrm{out}_i = \frac{\sum_j f(q_i) \cdot f(k_j)
        \cos\!\left(\tfrac{\pi}{2} \tfrac{i - j}{m}\right) v_j}
        {\max\!\left(\sum_j f(q_i) \cdot f(k_j)
        \cos\!\left(\tfrac{\pi}{2} \tfrac{i - j}{m}\right),
        \mathtt{floor}\right)}

    (Qin et al. 2022, arXiv 2202.08791, equations 10 and 12), with j over the keys of
    the row, or, when causal, those up to i. The cosine of a difference is a product
    of two features, so time and memory are linear in the length.

    Args:
        query: ``[B, H, L, D]``.
        key: ``[B, Hkv, S, D]``, H a multiple of Hkv.
        value: ``[B, Hkv, S, M]``.
        causal: Query i sees the keys up to i; queries and keys are the same tokens.
        activation: f, ``"relu"`` or ``"elu"`` (1 + elu(x)).
        max_length: m; default the larger of the row's numbers of valid queries and
            keys. Positions beyond it are refused on the CPU; on other devices their
            cosines may be negative.
        query_position: ``[L]`` or ``[B, L]`` int64, positions from 0; default the
            place among the row's valid tokens.
        key_position: ``[S]`` or ``[B, S]`` int64. When causal, one of the two serves
            both.
        floor: The least denominator.
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
        ValueError: A shape, size, name or span is wrong; a position beyond
            ``max_length``.
        TypeError: A dtype is wrong.

    Example:
        >>> import torch
        >>> from subquad.functional import cosformer_attention
        >>> x = torch.ones(1, 1, 2, 1)
        >>> v = torch.tensor([0.0, 1.0]).view(1, 1, 2, 1)
        >>> cosformer_attention(x, x, v)[0, 0, :, 0]
        tensor([0.4142, 0.5858])
    """
    output: Tensor = torch.ops.subquad.cosformer_attention(
        query,
        key,
        value,
        causal=causal,
        activation=activation,
        max_length=max_length,
        query_position=query_position,
        key_position=key_position,
        floor=floor,
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


def cosformer_attention_with_state(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    causal: bool = False,
    activation: str = "relu",
    max_length: int | None = None,
    query_position: Tensor | None = None,
    key_position: Tensor | None = None,
    floor: float = 1e-6,
    state_kv: Tensor | None = None,
    state_k: Tensor | None = None,
    lengths: Tensor | None = None,
    starts: Tensor | None = None,
    query_lengths: Tensor | None = None,
    query_starts: Tensor | None = None,
    order: Tensor | None = None,
    query_order: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    query_cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`cosformer_attention`, and the state after it.

    Passing the state to the next call continues the sequence, whose positions and
    ``max_length`` are then to be given.

    Args:
        query: As for :func:`cosformer_attention`, like all that
            follow.
        key: See ``query``.
        value: See ``query``.
        causal: See ``query``.
        activation: See ``query``.
        max_length: See ``query``.
        query_position: See ``query``.
        key_position: See ``query``.
        floor: See ``query``.
        state_kv: ``[rows, Hkv, 2 * D, M]``, the sums of feature times value that
            earlier tokens left.
        state_k: ``[rows, Hkv, 2 * D]``, their sums of features.
        lengths: See ``query``.
        starts: See ``query``.
        query_lengths: See ``query``.
        query_starts: See ``query``.
        order: See ``query``.
        query_order: See ``query``.
        cu_seqlens: See ``query``.
        query_cu_seqlens: See ``query``.

    Returns:
        Output ``[B, H, L, M]``, and the new ``state_kv`` and ``state_k`` in float32
        (float64 for float64).

    Raises:
        ValueError: A shape, size, name or span is wrong; a position beyond
            ``max_length``.
        TypeError: A dtype is wrong.

    Example:
        >>> import torch
        >>> from subquad.functional import cosformer_attention_with_state
        >>> x = torch.randn(1, 2, 9, 4)
        >>> _, state_kv, state_k = cosformer_attention_with_state(
        ...     x, x, x, causal=True, max_length=100
        ... )
        >>> state_kv.shape, state_k.shape
        (torch.Size([1, 2, 8, 4]), torch.Size([1, 2, 8]))
    """
    outputs: tuple[Tensor, Tensor, Tensor] = (
        torch.ops.subquad.cosformer_attention_with_state(
            query,
            key,
            value,
            causal=causal,
            activation=activation,
            max_length=max_length,
            query_position=query_position,
            key_position=key_position,
            floor=floor,
            state_kv=state_kv,
            state_k=state_k,
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
