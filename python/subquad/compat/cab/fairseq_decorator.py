"""Attention modules for fairseq's decoders."""

import importlib
import logging
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor

from subquad import nn
from subquad.nn.in_projection import split_in_projections

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
            self.shares_memory = encoder_decoder_attention
            _logger.info("Using efficient attention %s", self.name)

        def upgrade_state_dict_named(
            self, state_dict: dict[str, Tensor], name: str
        ) -> None:
            """Split ``in_proj`` weights and biases under ``name``, in place."""
            split_in_projections(state_dict, name)

    wrapped: Attention = _incremental()(FSCls)
    return wrapped


def _incremental() -> Callable[[Any], Any]:
    try:
        fairseq = importlib.import_module("fairseq.incremental_decoding_utils")
    except ImportError:
        return lambda cls: cls
    decorator: Callable[[Any], Any] = fairseq.with_incremental_state
    return decorator
