"""Merging of two softmax attentions over disjoint keys, in plain PyTorch."""

import torch
from torch import Tensor


def merge_attention(
    output_a: Tensor, lse_a: Tensor, output_b: Tensor, lse_b: Tensor
) -> tuple[Tensor, Tensor]:
    """Reference of :func:`subquad.functional.merge_attention`."""
    empty = (lse_a == -torch.inf) & (lse_b == -torch.inf)
    output_a = torch.where(lse_a[..., None] == -torch.inf, 0, output_a)
    output_b = torch.where(lse_b[..., None] == -torch.inf, 0, output_b)
    lse_a = torch.where(empty, 0, lse_a)
    lse_b = torch.where(empty, 0, lse_b)
    lse = torch.logaddexp(lse_a, lse_b)
    weight_a = torch.where(empty, 0, (lse_a - lse).exp())[..., None]
    weight_b = torch.where(empty, 0, (lse_b - lse).exp())[..., None]
    output = weight_a.to(output_a.dtype) * output_a
    output = output + weight_b.to(output_b.dtype) * output_b
    return output, torch.where(empty, -torch.inf, lse)
