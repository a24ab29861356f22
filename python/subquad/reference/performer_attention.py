"""Attention through random features, in plain PyTorch."""

from torch import Tensor

from subquad.reference.linear_attention import linear_attention_with_state
from subquad.reference.random_features import random_features


def performer_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    projection: Tensor,
    causal: bool = False,
    kind: str = "positive",
    eps: float | None = None,
    stabilizer_gradient: bool = True,
    floor: float = 0.1,
    scale: float | None = None,
    query_weight: Tensor | None = None,
    key_weight: Tensor | None = None,
    lengths: Tensor | None = None,
    starts: Tensor | None = None,
    query_lengths: Tensor | None = None,
    query_starts: Tensor | None = None,
    order: Tensor | None = None,
    query_order: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    query_cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Reference of :func:`subquad.functional.performer_attention`."""
    return performer_attention_with_state(
        query,
        key,
        value,
        projection,
        causal=causal,
        kind=kind,
        eps=eps,
        stabilizer_gradient=stabilizer_gradient,
        floor=floor,
        scale=scale,
        query_weight=query_weight,
        key_weight=key_weight,
        lengths=lengths,
        starts=starts,
        query_lengths=query_lengths,
        query_starts=query_starts,
        order=order,
        query_order=query_order,
        cu_seqlens=cu_seqlens,
        query_cu_seqlens=query_cu_seqlens,
    )[0]


def performer_attention_with_state(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    projection: Tensor,
    causal: bool = False,
    kind: str = "positive",
    eps: float | None = None,
    stabilizer_gradient: bool = True,
    floor: float = 0.1,
    scale: float | None = None,
    query_weight: Tensor | None = None,
    key_weight: Tensor | None = None,
    state_kv: Tensor | None = None,
    state_k: Tensor | None = None,
    state_log_scale: Tensor | None = None,
    lengths: Tensor | None = None,
    starts: Tensor | None = None,
    query_lengths: Tensor | None = None,
    query_starts: Tensor | None = None,
    order: Tensor | None = None,
    query_order: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    query_cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Reference of :func:`subquad.functional.performer_attention_with_state`."""
    if eps is None:
        R = projection.shape[1]
        eps = {"positive": 1e-4 * R**-0.5, "relu": 1e-3}.get(kind, 0.0)
    stabilised = kind in ("positive", "trigonometric")
    running = stabilised and causal
    queries = (query_lengths, query_starts, query_order, query_cu_seqlens)
    if causal:
        queries = (lengths, starts, order, cu_seqlens)
    elif query_cu_seqlens is None:
        queries = (query_lengths, query_starts, query_order, cu_seqlens)
    phi_q, _ = random_features(
        query,
        projection,
        kind,
        "token" if stabilised else "none",
        stabilizer_gradient,
        eps,
        scale,
        None,
        *queries,
    )
    of_keys = "prefix" if causal else "row"
    phi_k, log_scale = random_features(
        key,
        projection,
        kind,
        of_keys if stabilised else "none",
        stabilizer_gradient,
        eps,
        scale,
        state_log_scale if running else None,
        lengths,
        starts,
        order,
        cu_seqlens,
    )
    return linear_attention_with_state(
        phi_q,
        phi_k,
        value,
        causal=causal,
        floor=floor,
        query_weight=query_weight,
        key_weight=key_weight,
        key_log_scale=log_scale if running else None,
        state_kv=state_kv,
        state_k=state_k,
        state_log_scale=state_log_scale if running else None,
        lengths=lengths,
        starts=starts,
        query_lengths=query_lengths,
        query_starts=query_starts,
        order=order,
        query_order=query_order,
        cu_seqlens=cu_seqlens,
        query_cu_seqlens=query_cu_seqlens,
    )
