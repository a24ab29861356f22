"""The flags of the places, and what their user is told."""

from __future__ import annotations

import argparse
import copy
import functools
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

import torch
from fairseq import options
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY

from subquad.errors import UnsupportedPattern
from subquad.fairseq.places import Place, own_options
from subquad.nn import get_mechanism, mechanisms
from subquad.nn.options import nearest


def add_flags(parser: Any, places: Iterable[Place]) -> None:
    """Add the choice and every mechanism's options of some places.

    Args:
        parser: An argument parser or one of its groups.
        places: With a flag and prefixed options each.
    """
    usual = mechanisms()
    for place in places:
        parser.add_argument(
            place.flag,
            type=_mechanism,
            metavar="NAME",
            default=argparse.SUPPRESS,
            help=f"{place.help}: {', '.join(usual)} (default: fairseq's own module)",
        )
        # Mechanisms that have an option of the same name share its flag.
        owners: dict[str, list[str]] = {}
        actions: dict[str, argparse.Action] = {}
        for name, cls in usual.items():
            for action in own_options(cls):
                owners.setdefault(action.dest, []).append(name)
                actions.setdefault(action.dest, action)
        for option, action in actions.items():
            flag = copy.copy(action)
            flag.option_strings = [
                f"{place.flag}-{word.lstrip('-')}" for word in action.option_strings
            ]
            flag.dest = f"{place.name}_{option}"
            if flag.nargs != 0 and flag.choices is None:
                flag.metavar = flag.metavar or "X"
            flag.help = f"of {', '.join(owners[option])}: {action.help}"
            parser._add_action(flag)


def check(
    args: argparse.Namespace, places: Iterable[Place], sizes: Mapping[str, Any]
) -> None:
    """Build what was asked for without memory, to refuse what cannot be built.

    Args:
        args: Parsed flags.
        places: To look at.
        sizes: Of the model with the architecture's defaults: ``encoder_embed_dim``,
            ``decoder_attention_heads``, ...

    Raises:
        ValueError: See :meth:`Place.build`; options of a place without a mechanism.
        UnsupportedPattern: See :meth:`Place.build`.
    """
    for place in places:
        if place.chosen(args) is None:
            place.check_unused(args)
            continue
        width = sizes[f"{place.half}_embed_dim"]
        heads = sizes[f"{place.half}_attention_heads"]
        with torch.device("meta"):
            place.build(args, width, heads)


class FlagParser(argparse.ArgumentParser):
    """What fairseq's parser becomes.

    Its errors are one line without the usage, which is hundreds of lines long, and
    name the nearest flag; the places are checked against the architecture.
    """

    def error(self, message: str) -> NoReturn:
        """Leave with exit code 2."""
        self.exit(2, f"{self.prog}: error: {message}\n")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, refuse what is left over, and check."""
        parsed, rest = self.parse_known_args(args, namespace)
        if rest:
            word = rest[0].split("=", 1)[0]
            kind = "option" if word.startswith("-") else "argument"
            match = nearest(word, self._option_string_actions)
            advice = f", did you mean {match}" if match else ""
            self.error(f"unknown {kind} {word}{advice}")
        architecture = getattr(parsed, "arch", None)
        places = getattr(ARCH_MODEL_REGISTRY.get(architecture), "places", ())
        if places:
            complete = copy.copy(parsed)
            ARCH_CONFIG_REGISTRY[architecture](complete)
            try:
                check(parsed, places, vars(complete))
            except (ValueError, UnsupportedPattern) as error:
                self.error(str(error))
        return parsed


def adopt_parsers() -> None:
    """Let fairseq's entry points parse with :class:`FlagParser`.

    A model sees but a group of the parser, so it is caught where fairseq parses.
    Doing it twice changes nothing.
    """
    original = options.parse_args_and_arch
    if hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    def parse(parser: Any, *inputs: Any, **more: Any) -> Any:
        if type(parser) is argparse.ArgumentParser:
            parser.__class__ = FlagParser
        return original(parser, *inputs, **more)

    options.parse_args_and_arch = parse


def _mechanism(name: str) -> str:
    # The type of a flag.
    try:
        get_mechanism(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return name
