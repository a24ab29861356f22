"""Rotary positions of queries and keys."""

import torch
from torch import Tensor


def rotate(input: Tensor, positions: Tensor, base: float) -> Tensor:
    r"""Turn each pair of features by an angle proportional to its position.

    .. math::
        (x_{2i} + \mathrm{i}\, x_{2i+1}) \cdot
        e^{\mathrm{i}\, p\, \mathrm{base}^{-2i/D}}

    so that the product of a query and a key depends on the distance of their
    positions only (Su et al. 2021, arXiv 2104.09864, equation 34). Angles are
    computed in float32, in float64 for float64.

    Args:
        input: ``[B, H, L, D]``, D even.
        positions: ``[L]`` or ``[B, L]`` int64.
        base: the slowest pair turns by about ``1 / base`` per position.

    Returns:
        ``[B, H, L, D]`` in the dtype and memory layout of ``input``.
    """
    half = input.size(-1) // 2
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    exponent = torch.arange(half, dtype=dtype, device=input.device) / -half
    angles = positions.unsqueeze(-1) * torch.pow(base, exponent)  # [(B,) L, D / 2]
    if positions.dim() == 2:
        angles = angles.unsqueeze(1)
    batch, heads, length, _ = input.shape
    pairs = input.to(dtype).view(batch, heads, length, half, 2)
    if not torch.jit.is_scripting():  # type: ignore[attr-defined]
        if torch.compiler.is_compiling():  # inductor has no complex arithmetic
            cosine, sine = angles.cos(), angles.sin()
            first, second = pairs.unbind(-1)
            turned = torch.stack(
                (first * cosine - second * sine, first * sine + second * cosine), -1
            )
            return turned.flatten(-2).to(input.dtype)
    # One pass over the input, where real arithmetic takes several.
    turn = torch.polar(torch.ones_like(angles), angles)
    turned = torch.view_as_real(torch.view_as_complex(pairs) * turn)
    return turned.flatten(-2).to(input.dtype)
