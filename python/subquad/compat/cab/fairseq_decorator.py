"""Attention modules for fairseq's decoders."""

import importlib
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from subquad import nn

_logger = logging.getLogger(__name__)
Attention = TypeVar("Attention", bound=type[nn.AbstractAttention])


def fsmha(cls: Attention) -> Attention:
    """Class decorator: let fairseq's decoders and beam search use ``cls``.

    The class accepts ``encoder_decoder_attention``, is an incremental module of
    fairseq where fairseq can be imported, and loads checkpoints with the three input
    projections in one ``in_proj`` matrix.

    Args:
        cls: An attention class.

    Example:
        >>> from subquad.compat.cab import LocalAttention, fsmha
        >>> @fsmha
        ... class FSLocal(LocalAttention):
        ...     pass
        >>> attention = FSLocal(embed_dim=32, num_heads=4, causal=True)
    """
    base: Any = cls

    class FSCls(base):  # type: ignore[misc]
        def __init__(
            self, *args: Any, encoder_decoder_attention: bool = False, **options: Any
        ) -> None:
            super().__init__(*args, **options)
            self.encoder_decoder_attention = encoder_decoder_attention
            _logger.info("Using efficient attention %s", self.name)

        @torch.jit.export
        def reorder_incremental_state(
            self,
            incremental_state: dict[str, dict[str, Tensor | None]],
            new_order: Tensor,
        ) -> dict[str, dict[str, Tensor | None]]:
            # The rows of one sentence share its memory: as long as there are as many
            # of them there is nothing to reorder.
            if self.encoder_decoder_attention:
                for tensor in self._get_input_buffer(incremental_state).values():
                    if tensor is not None and tensor.size(0) == new_order.size(0):
                        return incremental_state
            result: dict[str, dict[str, Tensor | None]] = (
                super().reorder_incremental_state(incremental_state, new_order)
            )
            return result

        def upgrade_state_dict_named(
            self, state_dict: dict[str, Tensor], name: str
        ) -> None:
            """Split ``in_proj`` weights and biases under ``name``, in place."""
            prefix = f"{name}." if name else ""
            for kind in ("weight", "bias"):
                ending = f"{prefix}in_proj_{kind}"
                for key in [key for key in state_dict if key.endswith(ending)]:
                    stem = key[: -len(f"in_proj_{kind}")]
                    parts = state_dict.pop(key).chunk(3)
                    for letter, part in zip("qkv", parts, strict=True):
                        state_dict[f"{stem}{letter}_proj.{kind}"] = part

    wrapped: Attention = _incremental()(FSCls)
    return wrapped


def _incremental() -> Callable[[Any], Any]:
    try:
        fairseq = importlib.import_module("fairseq.incremental_decoding_utils")
    except ImportError:
        return lambda cls: cls
    decorator: Callable[[Any], Any] = fairseq.with_incremental_state
    return decorator
