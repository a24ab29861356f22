"""Command-line options of the training commands."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, NoReturn

from subquad.nn.arguments import ArgumentContainer
from subquad.training.errors import CommandError


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line and name the nearest valid option."""

    def __init__(self, **options: Any) -> None:
        """Take the options of ``argparse.ArgumentParser``; never guess a flag."""
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage.

        Raises:
            CommandError: always.
        """
        raise CommandError(message)

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        """Parse, and refuse what is left over."""
        result, rest = self.parse_known_args(args, namespace)
        if rest:
            option = rest[0].split("=", 1)[0]
            kind = "option" if option.startswith("-") else "argument"
            hint = nearest(option, self._option_string_actions)
            raise CommandError(f"unknown {kind} {option!r}{hint}")
        return result


def nearest(word: str, valid: Iterable[str]) -> str:
    """Return ``"; did you mean ...?"`` for the closest of ``valid``, or nothing."""
    matches = difflib.get_close_matches(word, list(valid), n=1, cutoff=0.5)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def add_settings(
    parser: ArgumentContainer,
    settings: type,
    *,
    defaults: Mapping[str, Any] | None = None,
    leave_out: Iterable[str] = (),
) -> None:
    """Add an option for every field of a settings class that has metadata.

    Options that are not given leave no attribute behind.

    Args:
        parser: a parser or a group of one.
        settings: the class.
        defaults: to tell where they are not those of the class.
        leave_out: fields that the caller decides.
    """
    for setting in fields(settings):
        if not setting.metadata or setting.name in leave_out:
            continue
        default = (defaults or {}).get(setting.name, setting.default)
        parser.add_argument(
            f"--{setting.name.replace('_', '-')}",
            type=type(setting.default),
            choices=setting.metadata["choices"],
            metavar=None if setting.metadata["choices"] else "X",
            default=argparse.SUPPRESS,
            help=f"{setting.metadata['help']} (default: {default})",
        )
