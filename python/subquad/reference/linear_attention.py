"""Linear attention, its feature maps and its state, in plain PyTorch."""

import torch
from torch import Tensor
from torch.nn import functional as F

from subquad.reference.token_rows import token_rows


def feature_map(
    x: Tensor,
    name: str = "identity",
    offset: float = 0.0,
    degree: int = 1,
    weight: Tensor | None = None,
) -> Tensor:
    """Features ``[B, H, N, F]`` of tokens ``[B, H, N, D]``.

    Args:
        x: Tokens.
        name: ``query_map`` or ``key_map`` of
            :func:`subquad.functional.linear_attention`.
        offset: Added to every feature.
        degree: Rolls of ``"dpfp"``.
        weight: ``[1 or B, N, C]``; copy c of the features is multiplied by weight c.
    """
    if name == "identity":
        features = x
    elif name == "relu":
        features = x.relu()
    elif name == "elu":
        features = 1 + F.elu(x)
    elif name == "sigmoid":
        features = x.sigmoid()
    elif name == "exp":
        features = x.exp()
    elif name == "softmax":
        features = x.softmax(-1)
    elif name == "dpfp":
        y = torch.cat([x.relu(), (-x).relu()], -1)
        features = torch.cat([y * y.roll(j + 1, -1) for j in range(degree)], -1)
    else:
        raise ValueError(f"feature_map: unknown map {name!r}")
    features = features + offset
    if weight is not None:
        copies = features[..., None, :] * weight[:, None, :, :, None].to(x.dtype)
        features = copies.flatten(-2)
    return features


def linear_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    causal: bool = False,
    blindspot: int = 1,
    normalize: bool = True,
    floor: float = 1e-6,
    scale: float = 1.0,
    query_map: str = "identity",
    key_map: str = "identity",
    feature_offset: float = 0.0,
    feature_degree: int = 1,
    query_weight: Tensor | None = None,
    key_weight: Tensor | None = None,
    key_log_scale: Tensor | None = None,
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
) -> Tensor:
    """Reference of :func:`subquad.functional.linear_attention`."""
    return linear_attention_with_state(
        query,
        key,
        value,
        causal,
        blindspot,
        normalize,
        floor,
        scale,
        query_map,
        key_map,
        feature_offset,
        feature_degree,
        query_weight,
        key_weight,
        key_log_scale,
        state_kv,
        state_k,
        state_log_scale,
        lengths,
        starts,
        query_lengths,
        query_starts,
        order,
        query_order,
        cu_seqlens,
        query_cu_seqlens,
    )[0]


def linear_attention_with_state(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    causal: bool = False,
    blindspot: int = 1,
    normalize: bool = True,
    floor: float = 1e-6,
    scale: float = 1.0,
    query_map: str = "identity",
    key_map: str = "identity",
    feature_offset: float = 0.0,
    feature_degree: int = 1,
    query_weight: Tensor | None = None,
    key_weight: Tensor | None = None,
    key_log_scale: Tensor | None = None,
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
    """Reference of :func:`subquad.functional.linear_attention_with_state`."""
    B, H, L, _ = query.shape
    Hkv, S = key.shape[1:3]
    device = query.device
    wide = query.dtype if query.dtype == torch.float64 else torch.float32
    R = B if cu_seqlens is None else cu_seqlens.numel() - 1
    key_row, key_rank = token_rows(B, S, device, lengths, starts, order, cu_seqlens)
    if causal:
        query_row, query_rank = key_row, key_rank
    else:
        if query_cu_seqlens is None:
            query_cu_seqlens = cu_seqlens
        query_row, query_rank = token_rows(
            B, L, device, query_lengths, query_starts, query_order, query_cu_seqlens
        )
    counts = _counts(key_row, R)  # [R]

    # Who sees whom, [B, 1, L, S], and whose keys the state sums, [B, 1, S, 1].
    visible = (query_row[:, :, None] == key_row[:, None]) & (key_row >= 0)[:, None]
    summed = key_row >= 0
    if causal and blindspot == 1:
        visible = visible & (key_rank[:, None] <= query_rank[:, :, None])
    elif causal:
        end = query_rank // blindspot * blindspot
        visible = visible & (key_rank[:, None] < end[:, :, None])
        summed = summed & (key_rank < (counts // blindspot * blindspot)[key_row])
    visible, summed = visible[:, None], summed[:, None, :, None]

    key = torch.where((key_row >= 0)[:, None, :, None], key, 0)
    value = torch.where((key_row >= 0)[:, None, :, None], value, 0)
    query = torch.where((query_row >= 0)[:, None, :, None], query, 0)
    q = feature_map(query, query_map, feature_offset, feature_degree, query_weight)
    k = feature_map(key, key_map, feature_offset, feature_degree, key_weight)
    q = q * scale
    expand = H // Hkv

    products = q @ k.repeat_interleave(expand, 1).mT  # [B, H, L, S]
    one = query.new_ones((), dtype=wide)
    m = (
        query.new_zeros(B, Hkv, S, dtype=wide)
        if key_log_scale is None
        else (torch.where((key_row >= 0)[:, None], key_log_scale, 0))
    )
    if key_log_scale is not None:
        difference = m[:, :, None] - m[..., None]  # [B, Hkv, L, S], m_j - m_i
        decay = torch.where(visible, difference, -torch.inf).exp()
        products = products * decay.repeat_interleave(expand, 1).to(q.dtype)
    products = torch.where(visible, products, 0)
    values = value.repeat_interleave(expand, 1)
    numerator, denominator = products @ values, products.sum(-1)

    # The last log scale of every row: of its last token, or what came before.
    last = key_rank == counts[key_row] - 1  # [B, S]
    if state_log_scale is None:
        fill = -torch.inf if key_log_scale is not None else 0.0
        before = query.new_full((R, Hkv), fill, dtype=wide)
    else:
        before = state_log_scale
    after = before
    if key_log_scale is not None and S > 0:
        chosen = torch.where((last & (key_row >= 0))[:, None], m, 0)  # [B, Hkv, S]
        total = m.new_zeros(R, Hkv)
        total = total.index_add(
            0, key_row.clamp(min=0).flatten(), chosen.mT.flatten(0, 1)
        )
        after = torch.where((counts > 0)[:, None], total, before)

    seen = (query_row >= 0)[:, None, :, None]
    if state_kv is not None and state_k is not None:
        row = query_row.clamp(min=0)
        kv = state_kv[row].movedim(1, 2)  # [B, Hkv, L, F, M]
        k_sum = state_k[row].movedim(1, 2)
        weight = one.expand(B, Hkv, L)
        if key_log_scale is not None:
            weight = _decay(before[row].mT, m)
        weight = weight.repeat_interleave(expand, 1)[..., None]
        kv, k_sum = kv.repeat_interleave(expand, 1), k_sum.repeat_interleave(expand, 1)
        past = torch.einsum("bhlf,bhlfm->bhlm", q.to(wide), kv) * weight
        past_k = torch.einsum("bhlf,bhlf->bhl", q.to(wide), k_sum) * weight[..., 0]
        numerator = numerator + torch.where(seen, past, 0).to(numerator.dtype)
        denominator = denominator + torch.where(seen[..., 0], past_k, 0).to(q.dtype)
    output = numerator
    if normalize:
        bounded = denominator.clamp(min=floor)[..., None]
        nothing = bounded == 0
        output = torch.where(nothing, 0, numerator / torch.where(nothing, 1, bounded))

    # The sums that this call leaves.
    index = key_row.clamp(min=0).flatten()
    parts = torch.where(summed, k.to(wide), 0)  # [B, Hkv, S, F]
    if key_log_scale is not None and S > 0:
        own = torch.where((key_row >= 0)[..., None], after[key_row.clamp(min=0)], 0)
        parts = parts * _decay(m, own.mT)[..., None]
    pairs = parts[..., None] * torch.where(summed, value.to(wide), 0)[..., None, :]
    kv = m.new_zeros(R, Hkv, k.shape[-1], value.shape[-1])
    kv = kv.index_add(0, index, pairs.transpose(1, 2).flatten(0, 1))
    k_sum = m.new_zeros(R, Hkv, k.shape[-1])
    k_sum = k_sum.index_add(0, index, parts.transpose(1, 2).flatten(0, 1))
    if state_kv is not None and state_k is not None:
        weight = one.expand(R, Hkv)
        if key_log_scale is not None:
            weight = _decay(before, after)
        kv = kv + state_kv * weight[..., None, None]
        k_sum = k_sum + state_k * weight[..., None]
    if key_log_scale is None:
        after = m.new_empty(0)
    return output, kv, k_sum, after


def _counts(row: Tensor, rows: int) -> Tensor:
    """How many tokens each row has."""
    one_hot = row[..., None] == torch.arange(rows, device=row.device)
    return one_hot.sum((0, 1))


def _decay(before: Tensor, after: Tensor) -> Tensor:
    """exp(before - after), 0 where nothing came before."""
    empty = before == -torch.inf
    return torch.where(empty, 0, (torch.where(empty, 0, before) - after).exp())
