"""Padding masks as spans of valid tokens."""

import torch
from torch import Tensor


def mask_to_spans(mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where the valid tokens of each row of a padding mask lie.

    Args:
        mask: Padding mask ``[B, S]`` of any dtype; nonzero is padding.

    Returns:
        Index of the first valid token of each row and number of its valid tokens,
        both ``[B]`` int64, and whether they are one span in every row, a bool
        tensor without dimension.

    Raises:
        ValueError: The mask is not two-dimensional.

    Example:
        >>> import torch
        >>> from subquad.functional import mask_to_spans
        >>> mask = torch.tensor([[0, 0, 0, 1], [1, 1, 0, 0]])
        >>> starts, lengths, contiguous = mask_to_spans(mask)
        >>> starts.tolist(), lengths.tolist(), contiguous.item()
        ([0, 2], [3, 2], True)
    """
    spans: tuple[Tensor, Tensor, Tensor] = torch.ops.subquad.mask_to_spans(mask)
    return spans
