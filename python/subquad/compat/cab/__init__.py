"""The surface of github.com/Shark-NLP/CAB (``efficient_attention``).

Differs from :mod:`subquad.nn` where the project does: weights are returned by
default and can be differentiated, a bool ``attn_mask`` is added, padded queries are
computed, unknown keyword arguments are accepted (with one warning).
"""

from subquad.compat.cab.base import AbstractAttention
from subquad.compat.cab.cosformer import CosformerAttention
from subquad.compat.cab.fairseq_decorator import fsmha
from subquad.compat.cab.local_attention import LocalAttention
from subquad.compat.cab.multihead_attention import MultiheadAttention
from subquad.compat.cab.performer import Performer
from subquad.compat.cab.registry import (
    AVAILABLE_ATTENTIONS,
    MODULE_REGISTRY,
    get_cls,
    register_cls,
)
from subquad.nn.arguments import (
    NestedNamespace,
    add_nested_argument,
    remove_argument,
)

for _cls in (MultiheadAttention, CosformerAttention, LocalAttention, Performer):
    register_cls(_cls)

__all__ = [
    "AVAILABLE_ATTENTIONS",
    "MODULE_REGISTRY",
    "AbstractAttention",
    "CosformerAttention",
    "LocalAttention",
    "MultiheadAttention",
    "NestedNamespace",
    "Performer",
    "add_nested_argument",
    "fsmha",
    "get_cls",
    "register_cls",
    "remove_argument",
]
