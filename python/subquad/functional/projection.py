"""Linear projection by the faster matrix product of the machine."""

import torch
from torch import Tensor


def projection(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    r"""Linear projection :math:`y = x W^T + b`, forward and backward.

    The same numbers as :func:`torch.nn.functional.linear` up to rounding. Where
    PyTorch carries a second matrix product that is faster on the CPU at hand, that
    one is used.

    Args:
        x: ``[..., I]``, any number of leading axes in any layout.
        weight: ``[O, I]``.
        bias: ``[O]``.

    Returns:
        ``[..., O]``; its leading axes lie in memory in the order of those of ``x``,
        so neither a transposed ``x`` nor what reads the result costs a copy.

    Raises:
        ValueError: A shape is wrong.
        TypeError: The dtypes are not one of float64, float32, bfloat16 and float16.

    Example:
        >>> import torch
        >>> from subquad.functional import projection
        >>> projection(torch.ones(5, 2, 3), torch.ones(4, 3)).shape
        torch.Size([5, 2, 4])
    """
    output: Tensor = torch.ops.subquad.projection(x, weight, bias)
    return output
