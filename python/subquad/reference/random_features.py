"""Random features, in plain PyTorch."""

import torch
from torch import Tensor

from subquad.reference.token_rows import token_rows


def random_features(
    input: Tensor,
    projection: Tensor,
    kind: str = "positive",
    stabilizer: str = "token",
    stabilizer_gradient: bool = True,
    eps: float = 0.0,
    scale: float | None = None,
    initial_log_scale: Tensor | None = None,
    lengths: Tensor | None = None,
    starts: Tensor | None = None,
    order: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Reference of :func:`subquad.functional.random_features`."""
    B, H, L, D = input.shape
    Hp, R, _ = projection.shape
    wide = torch.float64 if input.dtype == torch.float64 else torch.float32
    a = D**-0.25 if scale is None else scale
    row, rank = token_rows(B, L, input.device, lengths, starts, order, cu_seqlens)
    valid = (row >= 0)[:, None]  # [B, 1, L]
    x = torch.where(valid[..., None], input, 0)
    p = a * x @ projection.repeat_interleave(H // Hp, 0).mT  # [B, H, L, R]
    n = a * a * x.square().sum(-1) / 2  # [B, H, L]

    exponential = kind in ("positive", "trigonometric")
    top = p.amax(-1) if kind == "positive" else n  # [B, H, L]
    m = torch.zeros_like(n)
    if exponential and stabilizer != "none":
        rows = B if cu_seqlens is None else cu_seqlens.numel() - 1
        before = top.new_full((rows, H), -torch.inf)
        if initial_log_scale is not None:
            before = initial_log_scale.to(top.dtype)
        m = _maximum(p, top, row, rank, before, kind, stabilizer)
        if not stabilizer_gradient:
            m = m.detach()
    if kind == "positive":
        features = (p - n[..., None] - m[..., None]).exp()
    elif kind == "trigonometric":
        features = torch.cat([p.sin(), p.cos()], -1) * (n - m).exp()[..., None]
    elif kind == "sincos":
        features = torch.cat([p.sin(), p.cos()], -1)
    elif kind == "relu":
        features = p.relu()
    else:
        raise ValueError(f"random_features: unknown kind {kind!r}")
    features = torch.where(valid[..., None], R**-0.5 * features + eps, 0)
    return features.to(input.dtype), torch.where(valid, m, 0).to(wide)


def _maximum(
    p: Tensor,
    top: Tensor,
    row: Tensor,
    rank: Tensor,
    before: Tensor,
    kind: str,
    stabilizer: str,
) -> Tensor:
    """The stabiliser of every token, [B, H, L]."""
    m = torch.zeros_like(top)
    for r in range(before.shape[0]):
        batch = min(r, top.shape[0] - 1)
        token = (row[batch] == r).nonzero().squeeze(1)
        token = token[rank[batch, token].argsort()]  # in the row's order
        if token.numel() == 0:
            continue
        tops = top[batch][:, token]  # [H, N]
        start = before[r][:, None]
        if stabilizer == "prefix":
            # The initial value is a token before all others; a later equal one wins.
            value = torch.cat([start, tops], 1).cummax(1).values[:, 1:]
        elif stabilizer == "row":
            if kind == "positive":
                tops = p[batch][:, token].flatten(1)
            value = torch.cat([start, tops], 1).amax(1, keepdim=True)
            value = value.expand(-1, token.numel())
        elif kind == "positive":
            parts = p[batch][:, token]
            both = torch.cat([start[..., None].expand(*tops.shape, 1), parts], -1)
            value = both.amax(-1)
        else:
            value = torch.maximum(start, tops)
        m = _put(m, batch, token, value)
    return m


def _put(m: Tensor, batch: int, token: Tensor, value: Tensor) -> Tensor:
    """``m`` with ``value [H, N]`` at tokens of one batch entry."""
    line = m[batch].index_copy(1, token, value)
    return torch.cat([m[:batch], line[None], m[batch + 1 :]])
