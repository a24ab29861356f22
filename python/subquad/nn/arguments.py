"""Mechanisms' options on a command line."""

import argparse
from typing import Any, Protocol


class ArgumentContainer(Protocol):
    """A parser or one of its groups."""

    def add_argument(self, *flags: str, **options: Any) -> argparse.Action:
        """Add an option."""


class NestedNamespace(argparse.Namespace):
    """A namespace where setting ``"a.b"`` sets ``b`` of a nested namespace ``a``.

    Example:
        >>> parser = argparse.ArgumentParser()
        >>> _ = add_nested_argument(parser, "--window-size", type=int)
        >>> arguments = parser.parse_args(["--window-size", "8"], NestedNamespace())
        >>> arguments.attn_args.window_size
        8
    """

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute, or one of a nested namespace that is made if needed."""
        outer, dot, inner = name.partition(".")
        if not dot:
            super().__setattr__(name, value)
            return
        nested = self.__dict__.get(outer)
        if not isinstance(nested, NestedNamespace):
            nested = NestedNamespace()
            super().__setattr__(outer, nested)
        setattr(nested, inner, value)

    def __getattr__(self, name: str) -> Any:
        """Get ``"a.b"`` from the nested namespace ``a``."""
        outer, dot, inner = name.partition(".")
        if dot and outer in self.__dict__:
            return getattr(self.__dict__[outer], inner)
        raise AttributeError(name)


def add_nested_argument(
    parser: ArgumentContainer, flag: str, **options: Any
) -> argparse.Action:
    """Add ``--some-flag`` so that it is parsed into ``attn_args.some_flag``."""
    name = flag.lstrip("-").replace("-", "_")
    return parser.add_argument(flag, dest=f"attn_args.{name}", **options)


def remove_argument(parser: argparse.ArgumentParser, argument: str) -> None:
    """Take an option, named by its first flag or its destination, off a parser."""
    for action in parser._actions:
        flags = action.option_strings
        if (flags and flags[0] == argument) or action.dest == argument:
            parser._remove_action(action)
            for flag in flags:
                parser._option_string_actions.pop(flag, None)
            for group in parser._action_groups:
                if action in group._group_actions:
                    group._group_actions.remove(action)
            return
