"""Softmax pooling of a sequence into slots, in plain PyTorch."""

import torch
from torch import Tensor

from subquad.reference.token_rows import token_rows


def sequence_pool(
    logits: Tensor,
    value: Tensor,
    lengths: Tensor | None = None,
    starts: Tensor | None = None,
    order: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Reference of :func:`subquad.functional.sequence_pool`."""
    return sequence_pool_with_lse(logits, value, lengths, starts, order, cu_seqlens)[0]


def sequence_pool_with_lse(
    logits: Tensor,
    value: Tensor,
    lengths: Tensor | None = None,
    starts: Tensor | None = None,
    order: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Reference of :func:`subquad.functional.sequence_pool_with_lse`."""
    B, H, S, _ = logits.shape
    row, _ = token_rows(B, S, logits.device, lengths, starts, order, cu_seqlens)
    rows = B if cu_seqlens is None else cu_seqlens.numel() - 1
    inside = row[:, None] == torch.arange(rows, device=row.device)[:, None]
    inside = inside.any(0) if B == 1 else inside[range(B), range(B)]  # [R, S]
    inside = inside[:, None, :, None]
    values = torch.where((row >= 0)[:, None, :, None], value, 0)
    values = values.repeat_interleave(H // value.shape[1], 1)
    logits = torch.where(inside, logits, -torch.inf)  # [R, H, S, C]
    if S == 0:
        lse = logits.sum(2) - torch.inf
        return logits.mT @ values, lse.to(_wide(lse))
    top = logits.detach().amax(2, keepdim=True)
    top = torch.where(top == -torch.inf, 0, top)
    exp = torch.where(inside, (logits - top).exp(), 0)
    total = exp.sum(2, keepdim=True)
    empty = total == 0
    weights = exp / torch.where(empty, 1, total)
    lse = torch.where(empty, -torch.inf, top + torch.where(empty, 1, total).log())
    lse = lse.squeeze(2)
    return weights.mT @ values, lse.to(_wide(lse))


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
