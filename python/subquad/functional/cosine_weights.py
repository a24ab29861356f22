"""Weights of positions for linear attention."""

import torch
from torch import Tensor


def cosine_weights(
    position: Tensor,
    max_length: int | None = None,
    lengths: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    r"""Sine and cosine of the angles that positions have in cosFormer.

    .. math::
        (\sin \theta, \cos \theta), \qquad
        \theta = \frac{\pi}{2} \frac{\mathtt{position} + 1}{m}

    (Qin et al. 2022, arXiv 2202.08791, equation 10). As weights of
    :func:`linear_attention` they multiply the product of the features at i and j by
    :math:`\cos(\tfrac{\pi}{2} \tfrac{i - j}{m})`.

    Args:
        position: ``[N]`` or ``[B, N]`` int64, from 0.
        max_length: m of all rows. Positions beyond it are refused on the CPU.
        lengths: m of each row, ``[B]`` or ``[B, N]`` int64, instead.
        dtype: float32, the default, or float64, for tokens in float64.

    Returns:
        ``[1 or B, N, 2]``.

    Raises:
        ValueError: A shape or size is wrong, or a position beyond ``max_length``.
        TypeError: A dtype is wrong.

    Example:
        >>> import torch
        >>> from subquad.functional import cosine_weights
        >>> cosine_weights(torch.tensor([0, 1]), max_length=3)
        tensor([[[0.5000, 0.8660],
                 [0.8660, 0.5000]]])
    """
    output: Tensor = torch.ops.subquad.cosine_weights(
        position, max_length=max_length, lengths=lengths, dtype=dtype
    )
    return output
