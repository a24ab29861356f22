"""The places of a transformer that attend, and what may stand there."""

from __future__ import annotations

import argparse
import typing
from dataclasses import dataclass
from typing import Any

from fairseq.modules.quant_noise import quant_noise
from torch import nn

from subquad.errors import UnsupportedPattern
from subquad.nn import (
    AbstractAttention,
    AttentionOptions,
    get_mechanism,
)

_PREFIX = "attn_args."
# Constructor options that follow from the place and from fairseq's own flags.
_GIVEN = ("kdim", "vdim", "bias", "dropout", "cross", "causal", "batch_first")


@dataclass(frozen=True)
class Place:
    """One kind of attention of a transformer.

    Attributes:
        name: of the flag without dashes and of the attribute in fairseq's namespace.
        half: attribute of the model, ``encoder`` or ``decoder``.
        attribute: of the layer.
        cross: keys are of another sequence.
        causal: what a decoder needs; in cross-attention because it does not know how
            many queries will follow.
        help: for ``--help``.
    """

    name: str
    half: str
    attribute: str
    cross: bool
    causal: bool
    help: str

    @property
    def flag(self) -> str:
        """What the command line calls it."""
        return f"--{self.name.replace('_', '-')}"

    def chosen(self, args: argparse.Namespace) -> str | None:
        """The mechanism that was asked for, None for fairseq's own module."""
        name: str | None = getattr(args, self.name, None)
        return name

    def build(
        self, args: argparse.Namespace, embed_dim: int, num_heads: int, **given: Any
    ) -> AbstractAttention:
        """The module that was asked for.

        Args:
            args: Parsed flags; its mechanism is chosen.
            embed_dim: Features of query and output.
            num_heads: Query heads.
            **given: Constructor options that the model decides.

        Raises:
            ValueError: An unknown mechanism, an option or a value it does not have.
            UnsupportedPattern: A mechanism that cannot stand here.
        """
        name = self.chosen(args) or ""
        try:
            cls: Any = get_mechanism(name)
            options = self._options(args, cls)
            pattern = {"cross": self.cross, "causal": self.causal}
            module: AbstractAttention = cls(
                embed_dim, num_heads, **options, **pattern, **given
            )
        except UnsupportedPattern as error:
            raise UnsupportedPattern(f"{self.flag} {name}: {error}") from None
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.flag} {name}: {error}") from None
        module.shares_memory = self.cross
        return module

    def check_unused(self, args: argparse.Namespace) -> None:
        """Refuse options of a place whose mechanism was not chosen.

        Raises:
            ValueError: There are some.
        """
        for option in self._given(args):
            raise ValueError(f"{flag_of(self, option)} needs {self.flag}")

    def _given(self, args: argparse.Namespace) -> dict[str, Any]:
        prefix = f"{self.name}_"
        return {
            key.removeprefix(prefix): value
            for key, value in vars(args).items()
            if key.startswith(prefix) and value is not None
        }

    def _options(self, args: argparse.Namespace, cls: Any) -> dict[str, Any]:
        given = self._given(args)
        valid = [option.dest for option in own_options(cls)]
        for option in given:
            if option not in valid:
                raise ValueError(
                    f"no option {flag_of(self, option)}, valid are "
                    f"{', '.join(flag_of(self, option) for option in valid)}"
                )
        return given


ENCODER_SELF = Place(
    "encoder_self_attention",
    "encoder",
    "self_attn",
    cross=False,
    causal=False,
    help="attention among the tokens of the source",
)
DECODER_SELF = Place(
    "decoder_self_attention",
    "decoder",
    "self_attn",
    cross=False,
    causal=True,
    help="attention of a token to those before it",
)
CROSS = Place(
    "cross_attention",
    "decoder",
    "encoder_attn",
    cross=True,
    causal=True,
    help="attention of the decoder to the source",
)


def own_options(cls: type[AbstractAttention]) -> list[argparse.Action]:
    """A mechanism's own options, then those that all mechanisms share.

    Returns:
        Actions of an argument parser without defaults, ``dest`` being the name of
        the constructor's argument.
    """
    parser = argparse.ArgumentParser(add_help=False)
    cls.add_attn_specific_args(parser)
    for name, hint in typing.get_type_hints(AttentionOptions).items():
        if name not in _GIVEN:
            kind = next(t for t in typing.get_args(hint) if t is not type(None))
            help = f"as the constructor's argument {name} (default: %(default)s)"
            parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=help)
    actions = []
    for action in parser._actions:
        action.dest = action.dest.removeprefix(_PREFIX)
        if action.dest not in _GIVEN:
            action.help = (action.help or "").replace(
                "%(default)s", str(action.default)
            )
            action.default = argparse.SUPPRESS
            actions.append(action)
    return actions


def replace(model: nn.Module, place: Place, args: argparse.Namespace) -> None:
    """Put what was asked for into every layer of a built model.

    Replacing serves all of fairseq's ways to build a layer, of which some lose the
    flags on the way (``TransformerConfig`` keeps the fields it knows).

    Raises:
        ValueError: See :meth:`Place.build`.
        UnsupportedPattern: See :meth:`Place.build`; layers wrapped for sharding.
    """
    for layer in model.get_submodule(f"{place.half}.layers"):  # type: ignore[attr-defined]
        if type(layer).__name__ == "FullyShardedDataParallel":
            raise UnsupportedPattern(
                f"{place.flag}: --ddp-backend fully_sharded shards layers before "
                "their attention can be replaced; use another backend"
            )
        stock = getattr(layer, place.attribute, None)
        if stock is None:  # a layer of experts, which does not attend
            continue
        memory = {"kdim": stock.kdim, "vdim": stock.vdim} if place.cross else {}
        module = place.build(
            args,
            stock.embed_dim,
            stock.num_heads,
            dropout=stock.dropout_module.p,
            **memory,
        )
        for part in module.modules():
            if isinstance(part, nn.Linear):
                quant_noise(part, layer.quant_noise, layer.quant_noise_block_size)
        setattr(layer, place.attribute, module)


def flag_of(place: Place, option: str) -> str:
    """What the command line calls an option of a place."""
    return f"{place.flag}-{option.replace('_', '-')}"
