"""fairseq's transformers with the attention of one's choice."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import numpy
import torch
from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.models import (
    ARCH_CONFIG_REGISTRY,
    ARCH_MODEL_INV_REGISTRY,
    register_model,
    register_model_architecture,
)
from fairseq.models.transformer import TransformerModel
from fairseq.models.transformer_lm import (
    TransformerLanguageModel,
    TransformerLanguageModelConfig,
)
from torch import nn

from subquad.errors import UnsupportedPattern
from subquad.fairseq.decoder import CausalDecoder, Decoder
from subquad.fairseq.flags import add_flags, adopt_parsers
from subquad.fairseq.places import CROSS, DECODER_SELF, ENCODER_SELF, Place, replace
from subquad.nn import AbstractAttention, MultiheadAttention, get_mechanism


class _Chosen:
    """What translation and language models share; comes before fairseq's class."""

    places: tuple[Place, ...]

    @classmethod
    def build_model(cls, args: argparse.Namespace, task: Any) -> Any:
        """Build fairseq's model, then replace its attention."""
        model = super().build_model(args, task)  # type: ignore[misc]
        chosen = [place for place in cls.places if place.chosen(args) is not None]
        if DECODER_SELF in chosen and getattr(args, "cross_self_attention", False):
            raise UnsupportedPattern(
                f"{DECODER_SELF.flag}: --cross-self-attention makes the source part of "
                "the decoder's sequence, which only fairseq's own module can do"
            )
        for place in cls.places:
            if place in chosen:
                replace(model, place, args)
            else:
                place.check_unused(args)
        if DECODER_SELF in chosen or CROSS in chosen:
            _adapt_decoder(model.decoder, DECODER_SELF in chosen, CROSS.chosen(args))
        return model

    def make_generation_fast_(self, **options: Any) -> None:
        """Prepare for generation.

        Raises:
            UnsupportedPattern: Attention dropout is to stay in force, which
                mechanisms have in training only.
        """
        named = options.get("retain_dropout_modules")
        retained = options.get("retain_dropout", False) and (
            named is None or "MultiheadAttention" in named
        )
        for module in self.modules():  # type: ignore[attr-defined]
            dropping = getattr(module, "dropout", 0) > 0
            if retained and isinstance(module, AbstractAttention) and dropping:
                raise UnsupportedPattern(
                    f"--retain-dropout: {type(module).__name__} drops attention "
                    "weights in training only"
                )
        super().make_generation_fast_(**options)  # type: ignore[misc]

    def load_state_dict(
        self,
        state_dict: dict[str, Any],
        strict: bool = True,
        model_cfg: Any = None,
        args: argparse.Namespace | None = None,
    ) -> Any:
        """Load a checkpoint.

        Raises:
            RuntimeError: It does not fit; where it is of other mechanisms, three
                lines say which keys differ and which flags to set.
        """
        try:
            return super().load_state_dict(  # type: ignore[misc]
                state_dict, strict, model_cfg, args
            )
        except RuntimeError:
            text = difference(self, state_dict, self.places)  # type: ignore[arg-type]
            if text is None:
                raise
        raise RuntimeError(text)


class Transformer(_Chosen, TransformerModel):  # type: ignore[misc]
    """Translation: encoder self-, decoder self- and cross-attention by name."""

    places = (ENCODER_SELF, DECODER_SELF, CROSS)

    @classmethod
    def add_args(cls, parser: Any) -> None:
        """Add fairseq's flags and those of the places."""
        super().add_args(parser)
        add_flags(parser, cls.places)


class LanguageModel(_Chosen, TransformerLanguageModel):  # type: ignore[misc]
    """Language model: decoder self-attention by name."""

    places = (DECODER_SELF,)

    @classmethod
    def add_args(cls, parser: Any) -> None:
        """Add fairseq's flags and those of the place."""
        gen_parser_from_dataclass(
            parser, TransformerLanguageModelConfig(), delete_default=True
        )
        add_flags(parser, cls.places)


def _adapt_decoder(decoder: Any, causal: bool, cross: str | None) -> None:
    # fairseq's language model names the class of its decoder itself, so that it can
    # only be changed afterwards; the classes differ in methods alone.
    decoder.__class__ = CausalDecoder if causal else Decoder
    decoder.hides_future = causal
    decoder.gives_weights = cross is None or issubclass(
        get_mechanism(cross), MultiheadAttention
    )
    if not decoder.gives_weights:
        for layer in decoder.layers:
            layer.need_attn = False


_MODELS = {"transformer": Transformer, "transformer_lm": LanguageModel}


def difference(
    model: nn.Module, state: dict[str, Any], places: tuple[Place, ...]
) -> str | None:
    """Say in three lines how the attention of a checkpoint differs.

    Args:
        model: What shall load it.
        state: The checkpoint's parameters.
        places: Whose flags to name.

    Returns:
        None if the attention is the same.
    """
    own = {name: tensor.shape for name, tensor in model.state_dict().items()}
    found = {name: tensor.shape for name, tensor in state.items()}
    differing: dict[Place, None] = {}

    def name_keys(keys: list[str]) -> str:
        attention = []
        for place in places:
            pattern = rf"{place.half}\.layers\.\d+\.{place.attribute}\."
            here = [key for key in keys if re.match(pattern, key)]
            differing.update(dict.fromkeys([place] if here else []))
            attention += here
        more = f" and {len(attention) - 2} more" if len(attention) > 2 else ""
        return f"{', '.join(attention[:2]) or 'none'}{more}"

    only_own = name_keys([k for k in own if own[k] != found.get(k)])
    only_found = name_keys([k for k in found if found[k] != own.get(k)])
    if not differing:
        return None
    flags = ", ".join(place.flag for place in differing)
    return (
        f"the model has, the checkpoint lacks or has in another shape: {only_own}\n"
        f"the checkpoint has, the model lacks or has in another shape: {only_found}\n"
        f"set {flags} and its options as in training; without it the place has "
        "fairseq's own module"
    )


def register() -> None:
    """Register models and architectures, and what fairseq needs with this torch.

    For every architecture of fairseq's ``transformer`` and ``transformer_lm`` there
    is one with the prefix ``subquad_``. Doing it twice changes nothing.
    """
    for stock, model in _MODELS.items():
        register_model(f"subquad_{stock}")(model)
        for architecture in ARCH_MODEL_INV_REGISTRY[stock]:
            name = f"subquad_{architecture}"
            if name not in ARCH_CONFIG_REGISTRY:
                apply = ARCH_CONFIG_REGISTRY[architecture]
                if model is LanguageModel:
                    apply = _with_defaults(apply)
                register_model_architecture(f"subquad_{stock}", name)(apply)
    adopt_parsers()
    # torch.load refuses fairseq's checkpoints, which carry their flags, without this.
    torch.serialization.add_safe_globals([argparse.Namespace])
    # NumPy 2.4 took away a name that fairseq's language modeling task generates with.
    if not hasattr(numpy, "compat"):
        numpy.compat = SimpleNamespace(long=int)  # type: ignore[attr-defined]


def _with_defaults(apply: Callable[[Any], None]) -> Callable[[Any], None]:
    # fairseq's own language model takes what the architecture leaves open from its
    # dataclass. With a dataclass the flags of the places would get lost.
    def complete(args: Any) -> None:
        apply(args)
        for field in fields(TransformerLanguageModelConfig):
            elsewhere = str(field.default).startswith("${") or field.name == "_name"
            if not elsewhere and not hasattr(args, field.name):
                setattr(args, field.name, field.default)

    return complete
