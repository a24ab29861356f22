"""Efficient attention, in plain PyTorch."""

import torch
from torch import Tensor

from subquad.reference.sequence_pool import sequence_pool
from subquad.reference.token_rows import token_rows


def efficient_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float | None = None,
    lengths: Tensor | None = None,
    starts: Tensor | None = None,
    query_lengths: Tensor | None = None,
    query_starts: Tensor | None = None,
    order: Tensor | None = None,
    query_order: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    query_cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Reference of :func:`subquad.functional.efficient_attention`."""
    B, H, L, D = query.shape
    if query_cu_seqlens is None:
        query_cu_seqlens = cu_seqlens
    row, _ = token_rows(
        B, L, query.device, query_lengths, query_starts, query_order, query_cu_seqlens
    )
    inside = (row >= 0)[:, None, :, None]  # [B, 1, L, 1]
    q = torch.where(inside, query, 0).softmax(-1)
    q = q * (D**-0.5 if scale is None else scale)
    context = sequence_pool(key, value, lengths, starts, order, cu_seqlens)
    context = context.repeat_interleave(H // key.shape[1], 1)  # [R, H, D, M]
    output = torch.einsum("bhld,blhdm->bhlm", q, context[row.clamp(min=0)])
    return torch.where(inside, output, 0)
