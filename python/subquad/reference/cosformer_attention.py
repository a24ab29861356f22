"""cosFormer's attention and its weights, in plain PyTorch."""

import math

import torch
from torch import Tensor

from subquad.reference.linear_attention import linear_attention_with_state
from subquad.reference.token_rows import token_rows


def cosine_weights(
    position: Tensor,
    max_length: int | None = None,
    lengths: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Reference of :func:`subquad.functional.cosine_weights`."""
    angle = math.pi / 2 * (position.double() + 1)
    if max_length is not None:
        angle = angle / max_length
    elif lengths is not None:
        m = lengths.clamp(min=1)
        angle = angle / (m[:, None] if m.dim() == 1 else m)
    if angle.dim() == 1:
        angle = angle[None]
    return torch.stack([angle.sin(), angle.cos()], -1).to(dtype or torch.float32)


def cosformer_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    causal: bool = False,
    activation: str = "relu",
    max_length: int | None = None,
    query_position: Tensor | None = None,
    key_position: Tensor | None = None,
    floor: float = 1e-6,
    lengths: Tensor | None = None,
    starts: Tensor | None = None,
    query_lengths: Tensor | None = None,
    query_starts: Tensor | None = None,
    order: Tensor | None = None,
    query_order: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    query_cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Reference of :func:`subquad.functional.cosformer_attention`."""
    return cosformer_attention_with_state(
        query,
        key,
        value,
        causal=causal,
        activation=activation,
        max_length=max_length,
        query_position=query_position,
        key_position=key_position,
        floor=floor,
        lengths=lengths,
        starts=starts,
        query_lengths=query_lengths,
        query_starts=query_starts,
        order=order,
        query_order=query_order,
        cu_seqlens=cu_seqlens,
        query_cu_seqlens=query_cu_seqlens,
    )[0]


def cosformer_attention_with_state(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    causal: bool = False,
    activation: str = "relu",
    max_length: int | None = None,
    query_position: Tensor | None = None,
    key_position: Tensor | None = None,
    floor: float = 1e-6,
    state_kv: Tensor | None = None,
    state_k: Tensor | None = None,
    lengths: Tensor | None = None,
    starts: Tensor | None = None,
    query_lengths: Tensor | None = None,
    query_starts: Tensor | None = None,
    order: Tensor | None = None,
    query_order: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    query_cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Reference of :func:`subquad.functional.cosformer_attention_with_state`."""
    B, _, L, _ = query.shape
    S, device = key.shape[2], key.device
    key_row, key_rank = token_rows(B, S, device, lengths, starts, order, cu_seqlens)
    query_row, query_rank = key_row, key_rank
    if not causal:
        bounds = cu_seqlens if query_cu_seqlens is None else query_cu_seqlens
        query_row, query_rank = token_rows(
            B, L, device, query_lengths, query_starts, query_order, bounds
        )
    if causal and query_position is None:
        query_position = key_position
    if causal and key_position is None:
        key_position = query_position
    weights = []
    for row, rank, position in (
        (query_row, query_rank, query_position),
        (key_row, key_rank, key_position),
    ):
        # The larger of the numbers of queries and keys of the token's row.
        m = torch.maximum(_count(query_row, row), _count(key_row, row))
        if max_length is not None:
            m = torch.full_like(m, max_length)
        place = rank if position is None else position.expand_as(rank)
        dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
        weights.append(cosine_weights(place, lengths=m, dtype=dtype))
    output, kv, k_sum, _ = linear_attention_with_state(
        query,
        key,
        value,
        causal=causal,
        floor=floor,
        query_map=activation,
        key_map=activation,
        query_weight=weights[0],
        key_weight=weights[1],
        state_kv=state_kv,
        state_k=state_k,
        lengths=lengths,
        starts=starts,
        query_lengths=query_lengths,
        query_starts=query_starts,
        order=order,
        query_order=query_order,
        cu_seqlens=cu_seqlens,
        query_cu_seqlens=query_cu_seqlens,
    )
    return output, kv, k_sum


def _count(rows: Tensor, row: Tensor) -> Tensor:
    """How many of the tokens of ``rows [B, N]`` are in ``row [B, N']``."""
    return (rows[:, None] == row[:, :, None]).sum(-1)
