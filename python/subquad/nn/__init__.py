"""Attention modules with the fairseq-style forward, and their registry.

All of them can be scripted, compiled without graph breaks and exported.
"""

from subquad.nn.arguments import (
    NestedNamespace,
    add_nested_argument,
    remove_argument,
)
from subquad.nn.base import AbstractAttention, ProjectedAttention
from subquad.nn.cosformer import CosformerAttention
from subquad.nn.linear import LinearAttention
from subquad.nn.local import LocalAttention
from subquad.nn.multihead import MultiheadAttention
from subquad.nn.options import AttentionOptions
from subquad.nn.performer import Performer
from subquad.nn.projection import Projection
from subquad.nn.registry import (
    AVAILABLE_ATTENTIONS,
    MODULE_REGISTRY,
    get_cls,
    get_mechanism,
    mechanism_options,
    mechanisms,
    module_from_args,
    register_cls,
)
from subquad.nn.summed import SummedAttention
from subquad.nn.torch_multihead import TorchMultiheadAttention

__all__ = [
    "AVAILABLE_ATTENTIONS",
    "MODULE_REGISTRY",
    "AbstractAttention",
    "AttentionOptions",
    "CosformerAttention",
    "LinearAttention",
    "LocalAttention",
    "MultiheadAttention",
    "NestedNamespace",
    "Performer",
    "ProjectedAttention",
    "Projection",
    "SummedAttention",
    "TorchMultiheadAttention",
    "add_nested_argument",
    "get_cls",
    "get_mechanism",
    "mechanism_options",
    "mechanisms",
    "module_from_args",
    "register_cls",
    "remove_argument",
]
