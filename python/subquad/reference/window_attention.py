"""Window attention by its definition, in plain PyTorch.

Each query gathers the keys and summaries within its reach, and whatever it does
not see is replaced by zero before any arithmetic, so that neither its result nor
a gradient depends on it, NaN and Inf included.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from subquad.reference.philox import keep_mask


class Attention(NamedTuple):
    """Result of :func:`attend`."""

    output: Tensor  # [B, H, L, M]
    lse: Tensor  # [B, H, L]
    weights: Tensor  # [B, H, L, W], of the keys


def window_attention(
    query: Tensor, key: Tensor, value: Tensor, **options: Any
) -> Tensor:
    """Reference of :func:`subquad.functional.window_attention`.

    Args:
        query: ``[B, H, L, D]``.
        key: ``[B, Hkv, S, D]``.
        value: ``[B, Hkv, S, M]``.
        **options: Those of :func:`attend`, which has the definition, and of
            :func:`attend_in_order`.

    Returns:
        ``[B, H, L, M]``.
    """
    return attend_in_order(query, key, value, **options).output


def window_attention_with_lse(
    query: Tensor, key: Tensor, value: Tensor, **options: Any
) -> tuple[Tensor, Tensor]:
    """Reference of :func:`subquad.functional.window_attention_with_lse`.

    Args:
        query: ``[B, H, L, D]``.
        key: ``[B, Hkv, S, D]``.
        value: ``[B, Hkv, S, M]``.
        **options: Those of :func:`attend`, which has the definition, and of
            :func:`attend_in_order`.

    Returns:
        Output ``[B, H, L, M]`` and log-sum-exp of the logits ``[B, H, L]``, the
        latter in float32, or in float64 for float64.
    """
    attention = attend_in_order(query, key, value, **options)
    return attention.output, attention.lse


def window_attention_weights(
    query: Tensor, key: Tensor, lse: Tensor, **options: Any
) -> Tensor:
    """Reference of :func:`subquad.functional.window_attention_weights`.

    Args:
        query: ``[B, H, L, D]``.
        key: ``[B, Hkv, S, D]``.
        lse: ``[B, H, L]``.
        **options: Those of :func:`attend` and :func:`attend_in_order`, without
            values, summaries and dropout.

    Returns:
        ``[B, H, L, left + block + right]``.
    """
    attention = attend_in_order(query, key, key, **options)
    empty = (lse == -torch.inf) | (attention.lse == -torch.inf)
    factor = (attention.lse - torch.where(empty, 0, lse)).exp()[..., None]
    weights = torch.where(empty[..., None], 0, attention.weights * factor)
    return weights.to(query.dtype)


def attend_in_order(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    order: Tensor | None = None,
    query_order: Tensor | None = None,
    lengths: Tensor | None = None,
    query_lengths: Tensor | None = None,
    query_position: Tensor | None = None,
    key_bias: Tensor | None = None,
    **options: Any,
) -> Attention:
    """:func:`attend` to rows whose tokens may lie scattered.

    Tokens are brought into the order of their rows, which makes them spans, and
    the results for queries back into the order of the tensor.
    """
    if order is not None and lengths is not None:
        options["starts"], order = _spans(order, lengths)
        key = key.take_along_dim(order[:, None, :, None], 2)
        value = value.take_along_dim(order[:, None, :, None], 2)
        key_bias = None if key_bias is None else key_bias.take_along_dim(order, 1)
    if query_order is not None and query_lengths is not None:
        options["query_starts"], query_order = _spans(query_order, query_lengths)
        query = query.take_along_dim(query_order[:, None, :, None], 2)
        if query_position is not None:
            query_position = query_position.expand(query_order.shape)
            query_position = query_position.take_along_dim(query_order, 1)
    attention = attend(
        query,
        key,
        value,
        lengths=lengths,
        query_lengths=query_lengths,
        query_position=query_position,
        key_bias=key_bias,
        **options,
    )
    if query_order is None:
        return attention
    rank = query_order.argsort(1)[:, None]  # of each query in its row
    output, lse, weights = attention
    return Attention(
        output.take_along_dim(rank[..., None], 2),
        lse.take_along_dim(rank, 2),
        weights.take_along_dim(rank[..., None], 2),
    )


def _spans(order: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Start of each row, and the order that makes it a span if it is none."""
    rank = torch.arange(order.shape[1], device=order.device)
    first = order[:, :1].sum(1, keepdim=True)  # 0 without tokens
    span = (order == first + rank) | (rank >= lengths[:, None])
    span = span.all(1, keepdim=True)
    return torch.where(span, first, 0)[:, 0], torch.where(span, rank, order)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    block: int,
    left: int,
    right: int,
    causal: bool = False,
    query_offset: int = 0,
    query_position: Tensor | None = None,
    lengths: Tensor | None = None,
    starts: Tensor | None = None,
    query_lengths: Tensor | None = None,
    query_starts: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    query_cu_seqlens: Tensor | None = None,
    bias: Tensor | None = None,
    key_bias: Tensor | None = None,
    relative_key: Tensor | None = None,
    summary_key: Tensor | None = None,
    summary_value: Tensor | None = None,
    summary_lengths: Tensor | None = None,
    summary_offset: int = 0,
    summary_block: int = 0,
    summaries_per_block: int = 1,
    summary_relative_key: Tensor | None = None,
    dropout: float = 0.0,
    dropout_state: Tensor | None = None,
    scale: float | None = None,
) -> Attention:
    """Softmax over a window of keys and over summaries, step by step.

    Takes the arguments of :func:`subquad.functional.window_attention` and checks
    none. Works in the dtype of its inputs, under ``torch.func`` too, and in
    O(L (W + C) (D + M)) memory per head.

    Returns:
        Output, log-sum-exp and the softmax weights of the keys before dropout, by
        slot.
    """
    B, H, L, D = query.shape
    S = key.shape[2]
    W = left + block + right
    scale = D**-0.5 if scale is None else scale
    device = query.device

    # The rows of tokens: each query's row, its position in it, the span of its keys.
    i = torch.arange(L, device=device)
    if cu_seqlens is not None:
        query_ends = cu_seqlens if query_cu_seqlens is None else query_cu_seqlens
        starts, lengths = cu_seqlens[:-1], cu_seqlens.diff()
        query_starts, query_lengths = query_ends[:-1], query_ends.diff()
        row = torch.searchsorted(query_ends, i, right=True) - 1
        row = row.clamp(0, len(starts) - 1)[None]  # [1, L]
    else:
        row = torch.arange(B, device=device)[:, None].expand(B, L)
        zeros = i.new_zeros(B)
        starts = zeros if starts is None else starts
        lengths = zeros + S if lengths is None else lengths
        query_starts = zeros if query_starts is None else query_starts
        query_lengths = zeros + L if query_lengths is None else query_lengths
    i = i - query_starts[row]  # [B, L], within the span
    valid = (i >= 0) & (i < query_lengths[row])
    position = i + query_offset if query_position is None else query_position
    position = position.expand(row.shape)

    # The window: W' = min(W, S) consecutive keys that hold all a query can see.
    begin = _floor_to(position, block)  # [B, L]
    first = (begin - left).clamp(0, max(S - W, 0))
    j = first[..., None] + torch.arange(min(W, S), device=device)  # [B, L, W']
    slot = j - (begin - left)[..., None]
    visible = valid[..., None] & (j < lengths[row][..., None])
    visible = visible & (slot >= 0) & (slot < W)
    if causal:
        visible = visible & (j <= position[..., None])
    token = (starts[row][..., None] + j).clamp(0, max(S - 1, 0))
    batch = torch.arange(B, device=device)[:, None, None]
    keys = _gather(key, batch, token, visible, H) * scale  # [B, H, L, W', D]
    values = _gather(value, batch, token, visible, H)  # [B, H, L, W', M]
    added = query.new_zeros(())  # [B, H, L, W'], added to the logits
    slot = slot.clamp(0, W - 1)
    if relative_key is not None:
        relative = relative_key[:, slot].transpose(0, 1)  # [B, 1|H, L, W', D]
        keys = keys + torch.where(visible[:, None, ..., None], relative, 0)
    if bias is not None:
        line = (position - begin)[..., None]
        added = added + bias[:, line, slot].transpose(0, 1)
    if key_bias is not None:
        added = added + key_bias[batch, token][:, None]
    added = torch.where(visible[:, None], added, 0)

    # The summaries: the first `limit` of the query's row.
    if summary_key is not None and summary_value is not None:
        C = summary_key.shape[2]
        c = torch.arange(C, device=device).expand(B, L, C)
        if summary_lengths is None:
            limit = torch.full_like(row, C)
        else:
            limit = summary_lengths[row]
        if summary_block > 0:
            blocks = _floor_to(position, summary_block) // summary_block
            reached = summary_offset + blocks * summaries_per_block
            limit = torch.minimum(reached.clamp(min=0), limit)  # [B, L]
        seen = valid[..., None] & (c < limit[..., None])  # [B, L, C]
        lines = row[..., None]
        summary_keys = _gather(summary_key, lines, c, seen, H) * scale
        if summary_relative_key is not None:
            distance = (limit[..., None] - 1 - c).clamp(min=0)
            relative = summary_relative_key[:, distance].transpose(0, 1)
            relative = torch.where(seen[:, None, ..., None], relative, 0)
            summary_keys = summary_keys + relative
        summary_values = _gather(summary_value, lines, c, seen, H)
        keys = torch.cat([keys, summary_keys], 3)
        values = torch.cat([values, summary_values], 3)
        added = torch.cat([added.expand(B, H, L, -1), added.new_zeros(B, H, L, C)], 3)
        visible = torch.cat([visible, seen], 2)
        token = torch.cat([token, S + c], 2)
    else:
        C = 0

    # One softmax over both.
    visible = visible[:, None].expand(B, H, L, -1)  # [B, H, L, W' + C]
    token = token[:, None].expand(B, H, L, -1)
    logits = torch.einsum("bhld,bhlwd->bhlw", query, keys) + added
    logits = torch.where(visible, logits, -torch.inf)
    weights, lse = _softmax(logits)
    kept = weights
    if dropout > 0 and dropout_state is not None:
        head = torch.arange(B * H, device=device).view(B, H, 1, 1)
        line = head * L + torch.arange(L, device=device)[:, None]
        keep = keep_mask(line * (S + C) + token, dropout, dropout_state)
        kept = torch.where(keep, weights / (1 - dropout), 0)
    output = torch.einsum("bhlw,bhlwm->bhlm", kept, values)
    slot = slot[:, None].expand(B, H, L, -1)
    window = torch.where(visible, weights, 0)[..., : slot.shape[3]]
    window = weights.new_zeros(B, H, L, W).scatter_add(3, slot, window)
    if lse.dtype != torch.float64:
        lse = lse.float()
    return Attention(output, lse, window)


def _floor_to(position: Tensor, block: int) -> Tensor:
    """First position of the block that each position is in."""
    return torch.div(position, block, rounding_mode="floor") * block


def _gather(x: Tensor, row: Tensor, token: Tensor, visible: Tensor, H: int) -> Tensor:
    """What queries see of ``x``: ``[R, Hkv, N, D]`` to ``[B, H, L, W, D]``."""
    x = x.repeat_interleave(H // x.shape[1], 1).transpose(1, 2)  # [R, N, H, D]
    x = torch.where(visible[..., None, None], x[row, token], 0)  # [B, L, W, H, D]
    return x.movedim(3, 1)


def _softmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax and log-sum-exp; zero and -inf where every logit is -inf."""
    if logits.shape[-1] == 0:
        return logits, logits.sum(-1) - torch.inf  # with a gradient, zero
    top = logits.detach().amax(-1, keepdim=True)
    top = torch.where(top.isfinite(), top, 0)
    exp = (logits - top).exp()
    total = exp.sum(-1, keepdim=True)
    empty = total == 0
    total = torch.where(empty, 1, total)
    lse = torch.where(empty, -torch.inf, top + total.log())
    return exp / total, lse[..., 0]
