"""Softmax pooling of a sequence into slots."""

import torch
from torch import Tensor


def sequence_pool(
    logits: Tensor,
    value: Tensor,
    lengths: Tensor | None = None,
    starts: Tensor | None = None,
    order: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    r"""Mean of the values of a row under a softmax over its tokens, per slot.

    .. math::
        \mathrm{out}_c = \sum_n \mathrm{softmax}_n(\mathrm{logits}_{n,c})\, v_n

    The keys' side of efficient attention (Shen et al. 2021, arXiv 1812.01243, eq. 4)
    and of mechanisms that pool a memory into slots.

    Args:
        logits: ``[B, H, S, C]``.
        value: ``[B, Hv, S, M]``, H a multiple of Hv.
        lengths: ``[B]`` int64, valid tokens of each row. Others are never read.
        starts: ``[B]`` int64, index of the first of them, default 0.
        order: ``[B, S]`` int64, for valid tokens that lie scattered: row b is the
            tokens ``order[b, :lengths[b]]``, in this order.
        cu_seqlens: ``[R + 1]`` int64, bounds of R rows packed into a batch of one.

    Returns:
        ``[R, H, C, M]`` with R = B rows unless packed; zeros for a row without tokens.

    Raises:
        ValueError: A shape, size or span is wrong.
        TypeError: A dtype is wrong.

    Example:
        >>> import torch
        >>> from subquad.functional import sequence_pool
        >>> value = torch.tensor([1.0, 3.0]).view(1, 1, 2, 1)
        >>> sequence_pool(torch.zeros(1, 1, 2, 3), value).flatten().tolist()
        [2.0, 2.0, 2.0]
    """
    output: Tensor = torch.ops.subquad.sequence_pool(
        logits,
        value,
        lengths=lengths,
        starts=starts,
        order=order,
        cu_seqlens=cu_seqlens,
    )
    return output


def sequence_pool_with_lse(
    logits: Tensor,
    value: Tensor,
    lengths: Tensor | None = None,
    starts: Tensor | None = None,
    order: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`sequence_pool`, and the log-sum-exp of every slot's logits.

    Args:
        logits: As for :func:`sequence_pool`, like all that follow.
        value: See ``logits``.
        lengths: See ``logits``.
        starts: See ``logits``.
        order: See ``logits``.
        cu_seqlens: See ``logits``.

    Returns:
        ``[R, H, C, M]``, and ``[R, H, C]`` in float32 (float64 for float64), -inf for a
        row without tokens; both are differentiable.

    Raises:
        ValueError: A shape, size or span is wrong.
        TypeError: A dtype is wrong.

    Example:
        >>> import torch
        >>> from subquad.functional import sequence_pool_with_lse
        >>> x = torch.zeros(1, 1, 1, 2)
        >>> sequence_pool_with_lse(x, x)[1].tolist()
        [[[0.0, 0.0]]]
    """
    outputs: tuple[Tensor, Tensor] = torch.ops.subquad.sequence_pool_with_lse(
        logits,
        value,
        lengths=lengths,
        starts=starts,
        order=order,
        cu_seqlens=cu_seqlens,
    )
    return outputs
