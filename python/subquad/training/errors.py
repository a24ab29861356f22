"""Failures of commands, and how they are told."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable


class CommandError(Exception):
    """A failure that its user can act on: one line on stderr, exit code 2."""


def report_errors(command: Callable[[], int]) -> int:
    """Run a command and return its exit code.

    A CommandError becomes a line on stderr and code 2, an interruption code 130.
    """
    try:
        return command()
    except CommandError as error:
        line = " ".join(str(error).split())
        print(f"subquad: {line}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of the output has gone, as in `... | head`
        # What is left in the buffer must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        return 130
