"""The command ``subquad bench`` and the commands under it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence

from subquad.benchmarks import run
from subquad.benchmarks.studies import STUDIES


def main(argv: Sequence[str] | None = None) -> int:
    """Run one of the studies if it is named first, else measure times.

    Args:
        argv: Arguments after ``subquad bench``; by default those of the process.

    Returns:
        The exit code.

    Raises:
        CommandError: Bad arguments or files.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] not in STUDIES:
        return run.main(words)
    name = f"subquad.benchmarks.{words[0].replace('-', '_')}"
    study: Callable[[Sequence[str]], int] = importlib.import_module(name).main
    return study(words[1:])
