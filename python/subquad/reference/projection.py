"""The linear projection, in plain PyTorch."""

from torch import Tensor


def projection(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Reference of :func:`subquad.functional.projection`."""
    output = (x[..., None, :] * weight).sum(-1)  # [..., O]
    return output if bias is None else output + bias
