r"""Rotary positions of queries and keys.

Each pair of features is turned by an angle proportional to its position,

.. math::
    (x_{2i} + \mathrm{i}\, x_{2i+1}) \cdot
    e^{\mathrm{i}\, p\, \mathrm{base}^{-2i/D}}

so that the product of a query and a key depends on the distance of their positions
only (Su et al. 2021, arXiv 2104.09864, equation 34).
"""

import torch
from torch import Tensor


def rotations(positions: Tensor, width: int, base: float, dtype: torch.dtype) -> Tensor:
    """Cosine and sine of the angles.

    Args:
        positions: ``[L]`` or ``[B, L]`` int64.
        width: D, even.
        base: The slowest pair turns by about ``1 / base`` per position.
        dtype: Of what will be rotated. Angles are computed in float32, in float64
            for float64.

    Returns:
        ``[L, D / 2, 2]`` or ``[B, 1, L, D / 2, 2]``.
    """
    half = width // 2
    dtype = torch.float64 if dtype == torch.float64 else torch.float32
    exponent = torch.arange(half, dtype=dtype, device=positions.device) / -half
    angles = positions.unsqueeze(-1) * torch.pow(base, exponent)  # [(B,) L, D / 2]
    if positions.dim() == 2:
        angles = angles.unsqueeze(1)
    return torch.stack((angles.cos(), angles.sin()), -1)


def rotate(input: Tensor, rotation: Tensor) -> Tensor:
    """Turn the pairs of features of every token.

    Args:
        input: ``[B, H, L, D]``.
        rotation: What :func:`rotations` returned.

    Returns:
        ``[B, H, L, D]`` in the dtype and memory layout of ``input``.
    """
    batch, heads, length, width = input.shape
    pairs = input.to(rotation.dtype).view(batch, heads, length, width // 2, 2)
    if not torch.jit.is_scripting():  # type: ignore[attr-defined]
        if torch.compiler.is_compiling():  # inductor has no complex arithmetic
            (even, odd), (cosine, sine) = pairs.unbind(-1), rotation.unbind(-1)
            turned = torch.stack(
                (even * cosine - odd * sine, even * sine + odd * cosine), -1
            )
            return turned.flatten(-2).to(input.dtype)
    # One pass over the input, where real arithmetic takes several.
    turned = torch.view_as_real(
        torch.view_as_complex(pairs) * torch.view_as_complex(rotation)
    )
    return turned.flatten(-2).to(input.dtype)
