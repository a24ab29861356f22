"""Linear attention in plain PyTorch: the benchmark reference."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# Of the sizes that were tried in eager mode, 32 to 256, the fastest at L = 4096.
_CHUNK = 64
FLOOR = 1e-6


def noncausal(q: Tensor, k: Tensor, v: Tensor, floor: float = FLOOR) -> Tensor:
    """Two products per head, and the normaliser.

    Args:
        q: Features ``[B, H, L, F]``.
        k: Features ``[B, H, S, F]``.
        v: ``[B, H, S, M]``.
        floor: The least denominator.
    """
    context = torch.einsum("bhsf,bhsm->bhfm", k, v)
    denominator = torch.einsum("bhlf,bhf->bhl", q, k.sum(2)).clamp(min=floor)
    return torch.einsum("bhlf,bhfm->bhlm", q, context) / denominator[..., None]


def causal(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_scale: Tensor | None = None,
    floor: float = FLOOR,
) -> Tensor:
    """A scan over chunks: what a chunk sees of itself, and the sums before it.

    Args:
        q: Features ``[B, H, L, F]``.
        k: Features ``[B, H, L, F]``.
        v: ``[B, H, L, M]``.
        log_scale: ``[B, H, L]``, not decreasing; that of
            :func:`subquad.functional.linear_attention`.
        floor: The least denominator.
    """
    B, H, length, _ = q.shape
    more = -length % _CHUNK
    q, k, v = (
        F.pad(x, (0, 0, 0, more)).reshape(B, H, -1, _CHUNK, x.shape[3])
        for x in (q, k, v)
    )
    within = torch.einsum("bhncf,bhnkf->bhnck", q, k)
    if log_scale is None:
        kv = torch.einsum("bhnkf,bhnkm->bhnfm", k, v)
        context, k_sum = _before(kv).cumsum(2), _before(k.sum(3)).cumsum(2)
    else:
        m = F.pad(log_scale, (0, more), mode="replicate").reshape(B, H, -1, _CHUNK)
        within = within * (m[..., None, :] - m[..., None]).tril().exp()
        last = m[..., -1:]  # [B, H, n, 1]
        k = k * (m - last).exp()[..., None]
        kv = torch.einsum("bhnkf,bhnkm->bhnfm", k, v)
        # The sums before chunk c have the scale of the last token before it.
        start = torch.cat([m[:, :, :1, :1], last[:, :, :-1]], 2)
        decay = (last.mT - start).tril(-1).exp().tril(-1)  # [B, H, n, n]
        context = torch.einsum("bhcn,bhnfm->bhcfm", decay, kv)
        k_sum = torch.einsum("bhcn,bhnf->bhcf", decay, k.sum(3))
        q = q * (start - m).exp()[..., None]
    within = within.tril()
    numerator = torch.einsum("bhnck,bhnkm->bhncm", within, v)
    numerator = numerator + torch.einsum("bhncf,bhnfm->bhncm", q, context)
    denominator = within.sum(-1) + torch.einsum("bhncf,bhnf->bhnc", q, k_sum)
    output = numerator / denominator.clamp(min=floor)[..., None]
    return output.flatten(2, 3)[:, :, :length]


def _before(chunks: Tensor) -> Tensor:
    """Chunk c of the result is chunk c - 1, zeros the first."""
    return torch.cat([torch.zeros_like(chunks[:, :, :1]), chunks[:, :, :-1]], 2)


def step(
    q: Tensor, k: Tensor, v: Tensor, kv: Tensor, k_sum: Tensor, floor: float = FLOOR
) -> tuple[Tensor, Tensor, Tensor]:
    """One more token: its output, and the sums with it.

    Args:
        q: Features ``[B, H, 1, F]``.
        k: Features ``[B, H, 1, F]``.
        v: ``[B, H, 1, M]``.
        kv: ``[B, H, F, M]``, the sum of the tokens before.
        k_sum: ``[B, H, F]``.
        floor: The least denominator.
    """
    kv = kv + k.mT @ v
    k_sum = k_sum + k.squeeze(2)
    denominator = q @ k_sum[..., None]
    return q @ kv / denominator.clamp(min=floor), kv, k_sum


def scan_flops(
    heads: int, length: int, features: int, width: int, backward: bool
) -> int:
    """Useful operations of linear attention: those of the recurrence.

    Per token two products of features by values forward (the sums, and what a query
    takes of them) and five backward (the sums again, their gradient, and the
    gradients of query, key and value); the normaliser is one more column of values.
    What a scan by chunks does inside of them beyond that is its own affair.
    """
    products = 7 if backward else 2
    return products * 2 * heads * length * features * (width + 1)


def positive_features(
    x: Tensor,
    projection: Tensor,
    stabilizer: str,
    eps: float = 0.0,
    gradient: bool = False,
) -> tuple[Tensor, Tensor]:
    """Positive random features and their log scale.

    Args:
        x: ``[B, H, L, D]``.
        projection: ``[H or 1, R, D]``.
        stabilizer: ``"token"``, ``"row"`` or ``"prefix"``; see
            :func:`subquad.functional.random_features`.
        eps: Added to every feature.
        gradient: Whether the log scale has one.
    """
    x = x * x.shape[-1] ** -0.25
    p = torch.einsum("bhld,hrd->bhlr", x, projection.expand(x.shape[1], -1, -1))
    m = (p if gradient else p.detach()).amax(-1)
    if stabilizer == "row":
        m = m.amax(-1, keepdim=True).expand(m.shape)
    elif stabilizer == "prefix":
        m = m.cummax(-1).values
    n = x.square().sum(-1) / 2
    features = (p - (n + m)[..., None]).exp() * projection.shape[1] ** -0.5
    return features + eps, m
