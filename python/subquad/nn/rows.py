"""Rows of a padded batch: which tokens are there.

Padding is absence: a mechanism sees each row as the sequence of its valid tokens.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from subquad import functional


class Rows(NamedTuple):
    """Valid tokens of each row of a batch ``[B, L]``. All None: every token."""

    padding: Tensor | None = None  # [B, L] bool, True = padding
    lengths: Tensor | None = None  # [B] int64, number of valid tokens
    order: Tensor | None = None  # [B, L] int64, their indices first


def find_rows(padding: Tensor | None) -> Rows:
    """Rows of a padding mask ``[B, L]``, nonzero = padding."""
    if padding is None:
        return Rows()
    lengths, order = functional.mask_to_spans(padding)
    return Rows(padding.to(torch.bool), lengths, order)


def advance(offset: Tensor, rows: Rows, tokens: Tensor) -> Tensor:
    """Positions ``[B]`` after the valid ones of ``tokens [B, H, L, D]``.

    Args:
        offset: ``[B]`` int64, the positions before.
        rows: Which tokens are valid.
        tokens: The tokens.
    """
    lengths = rows.lengths
    return offset + tokens.size(2) if lengths is None else offset + lengths


def token_positions(rows: Rows, tokens: Tensor, offset: Tensor | None) -> Tensor:
    """Positions counted per valid token.

    Args:
        rows: Which tokens are valid.
        tokens: ``[B, H, L, D]``, the tokens.
        offset: ``[B]`` int64, valid tokens that came before; None: 0.

    Returns:
        ``[L]``, or ``[B, L]`` where rows may differ, int64.
    """
    padding = rows.padding
    if padding is None:
        positions = torch.arange(tokens.size(2), device=tokens.device)
    else:
        positions = (~padding).cumsum(1) - 1
    return positions if offset is None else positions + offset.unsqueeze(1)


def erase_padding(input: Tensor, rows: Rows, batch_first: bool) -> Tensor:
    """Put zeros at the padded tokens of an input ``[L, B, C]`` or ``[B, L, C]``.

    No operator reads them, but the weight gradient of a projection multiplies every
    token by a gradient, and zero times NaN is NaN.
    """
    padding = rows.padding
    if padding is None:
        return input
    if not batch_first:
        padding = padding.t()
    return input.masked_fill(padding.unsqueeze(-1), 0.0)


def join_padding(
    before: Tensor | None, after: Tensor | None, past: int, tokens: Tensor
) -> Tensor | None:
    """Padding of cached and new tokens together.

    Args:
        before: ``[B, past]`` bool; None: no padding.
        after: ``[B, L]`` bool; None: no padding.
        past: Number of cached tokens.
        tokens: ``[B, H, past + L, D]``, any tensor of all tokens.

    Returns:
        ``[B, past + L]`` bool, None without padding.
    """
    if before is None and after is None:
        return None
    count = tokens.size(2) - past
    if before is None:
        before = torch.zeros(
            [tokens.size(0), past], dtype=torch.bool, device=tokens.device
        )
    if after is None:
        after = torch.zeros(
            [tokens.size(0), count], dtype=torch.bool, device=tokens.device
        )
    return torch.cat((before, after), 1)
