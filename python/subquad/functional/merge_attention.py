"""Merging of attention over disjoint sets of keys."""

import torch
from torch import Tensor


def merge_attention(
    output_a: Tensor, lse_a: Tensor, output_b: Tensor, lse_b: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Attention over two disjoint sets of keys from the attention over each.

    .. math::
        s = \log(e^{s_a} + e^{s_b}), \qquad o = e^{s_a - s} o_a + e^{s_b - s} o_b

    Where one side saw nothing (its log-sum-exp is -inf) the other is returned;
    where both saw nothing the output is 0 and the log-sum-exp -inf.

    Args:
        output_a: Attention over the first set, ``[B, H, L, M]``.
        lse_a: Log-sum-exp of its logits, ``[B, H, L]``, float32 (float64 for
            float64).
        output_b: Attention over the second set, ``[B, H, L, M]``.
        lse_b: Log-sum-exp of its logits, ``[B, H, L]``.

    Returns:
        Output ``[B, H, L, M]`` and log-sum-exp ``[B, H, L]``; both are
        differentiable.

    Raises:
        ValueError: A shape is wrong.
        TypeError: A dtype is wrong.

    Example:
        >>> import torch
        >>> from subquad.functional import merge_attention
        >>> one, zero = torch.ones(1, 1, 2, 4), torch.zeros(1, 1, 2)
        >>> output, lse = merge_attention(3 * one, zero, 5 * one, zero)
        >>> output[0, 0, 0].tolist()
        [4.0, 4.0, 4.0, 4.0]
    """
    outputs: tuple[Tensor, Tensor] = torch.ops.subquad.merge_attention(
        output_a, lse_a, output_b, lse_b
    )
    return outputs
