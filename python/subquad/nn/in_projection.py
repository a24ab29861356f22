"""Checkpoints with the three input projections in one matrix."""

from torch import Tensor


def split_in_projections(state: dict[str, Tensor], name: str) -> None:
    """Split ``in_proj_weight`` and ``in_proj_bias`` into those of q, k and v.

    Args:
        state: Parameters by name, changed in place.
        name: Of the attention module; empty: wherever such parameters are.
    """
    prefix = f"{name}." if name else ""
    for kind in ("weight", "bias"):
        ending = f"{prefix}in_proj_{kind}"
        for key in [key for key in state if key.endswith(ending)]:
            stem = key.removesuffix(f"in_proj_{kind}")
            parts = state.pop(key).chunk(3)
            for letter, part in zip("qkv", parts, strict=True):
                state[f"{stem}{letter}_proj.{kind}"] = part
