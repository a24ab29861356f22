"""Padding masks as rows of valid tokens, in plain PyTorch."""

from torch import Tensor


def mask_to_spans(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Reference of :func:`subquad.functional.mask_to_spans`."""
    padded = mask != 0
    return (~padded).sum(1), padded.long().argsort(dim=1, stable=True)
