"""Which rows tokens belong to, in plain PyTorch."""

import torch
from torch import Tensor


def token_rows(
    batch: int,
    tokens: int,
    device: torch.device,
    lengths: Tensor | None = None,
    starts: Tensor | None = None,
    order: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Row and rank within its row of every token.

    Args:
        batch: B.
        tokens: N, tokens of the axis.
        device: Of the results.
        lengths: ``[B]``, valid tokens of each row.
        starts: ``[B]``, the first of them, default 0.
        order: ``[B, N]``, the tokens of each row, valid ones first.
        cu_seqlens: ``[R + 1]``, bounds of packed rows; B is 1 then.

    Returns:
        Both ``[B, N]`` int64; -1 for tokens outside every row.
    """
    token = torch.arange(tokens, device=device).expand(batch, tokens)
    if cu_seqlens is not None:
        row = torch.searchsorted(cu_seqlens, token.contiguous(), right=True) - 1
        valid = (row >= 0) & (row < cu_seqlens.numel() - 1)
        rank = token - cu_seqlens[row.clamp(0, cu_seqlens.numel() - 1)]
        return torch.where(valid, row, -1), torch.where(valid, rank, -1)
    row = torch.arange(batch, device=device)[:, None].expand(batch, tokens)
    if lengths is None:
        return row, token
    rank = token if starts is None else token - starts[:, None]
    if order is not None:
        rank = torch.full_like(token, -1).scatter(1, order, token)
    valid = (rank >= 0) & (rank < lengths[:, None])
    return torch.where(valid, row, -1), torch.where(valid, rank, -1)
