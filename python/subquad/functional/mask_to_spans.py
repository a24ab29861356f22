"""Padding masks as rows of valid tokens."""

import torch
from torch import Tensor


def mask_to_spans(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Which tokens of each row of a padding mask are valid, and how many.

    Operators take the result as ``lengths`` and ``order``. The shapes do not depend
    on the data, and on CUDA nothing waits for it.

    Args:
        mask: Padding mask ``[B, S]`` of bool, integers or floating point numbers;
            nonzero is padding, NaN included.

    Returns:
        Number of valid tokens of each row, ``[B]`` int64, and the indices of the
        tokens, ``[B, S]`` int64: first those of the valid tokens, then those of the
        padded ones, both ascending.

    Raises:
        ValueError: The mask is not two-dimensional.
        TypeError: The dtype is none of those above.

    Example:
        >>> import torch
        >>> from subquad.functional import mask_to_spans
        >>> mask = torch.tensor([[0, 0, 0, 1], [1, 0, 1, 0]])
        >>> lengths, order = mask_to_spans(mask)
        >>> lengths.tolist(), order.tolist()
        ([3, 2], [[0, 1, 2, 3], [1, 3, 0, 2]])
    """
    rows: tuple[Tensor, Tensor] = torch.ops.subquad.mask_to_spans(mask)
    return rows
