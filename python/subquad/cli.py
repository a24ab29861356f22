"""The command ``subquad``: each subcommand imports what it needs when it is called."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence

from subquad.training.errors import CommandError, report_errors
from subquad.training.options import Parser

# Subcommand: module and function that takes the rest of the command line.
_COMMANDS = {
    "info": ("subquad.info", "main"),
    "train": ("subquad.cli", "_train"),
    "generate": ("subquad.training.commands", "generate"),
    "bench": ("subquad.benchmarks", "main"),
}
_MODELS = {"lm": ("subquad.training.commands", "train_lm")}
_HELP = """\
info       versions, instruction sets, and what is missing
train lm   train a language model on a text file
generate   continue a prompt with a trained language model
bench      measure operators and modules on this machine
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: without the program's name; by default that of the process.

    Returns:
        The exit code: 0, or 2 for bad input, which is told in one line on stderr.
    """
    words = sys.argv[1:] if argv is None else argv
    return report_errors(lambda: _dispatch("subquad", "COMMAND", _COMMANDS, words))


def _train(argv: Sequence[str]) -> int:
    return _dispatch("subquad train", "MODEL", _MODELS, argv)


def _dispatch(
    prog: str, word: str, table: dict[str, tuple[str, str]], argv: Sequence[str]
) -> int:
    parser = Parser(
        prog=prog,
        description=_HELP,
        epilog=f"`{prog} {word} --help` tells the options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("chosen", metavar=word, choices=table)
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    if not argv:
        raise CommandError(f"{prog}: give one of {', '.join(table)}, or --help")
    options = parser.parse_args(argv)
    module, name = table[options.chosen]
    command: Callable[[Sequence[str]], int] = getattr(
        importlib.import_module(module), name
    )
    return command(options.rest)
