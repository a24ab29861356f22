"""Values of options of several commands."""

from __future__ import annotations

import argparse


def positive(text: str) -> int:
    """A whole number of at least 1, such as 512, 16k or 1M.

    Raises:
        ArgumentTypeError: It is none.
    """
    factor = {"k": 1024, "m": 1024**2}.get(text[-1:].lower(), 1)
    try:
        number = int(text[:-1] if factor > 1 else text) * factor
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text!r}")
    return number


def words(text: str) -> tuple[str, ...]:
    """Words between commas."""
    return tuple(word.strip() for word in text.split(","))


def numbers(text: str) -> tuple[int, ...]:
    """Positive numbers between commas.

    Raises:
        ArgumentTypeError: One of them is none.
    """
    return tuple(positive(word) for word in words(text))
