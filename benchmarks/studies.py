"""Commands of ``subquad bench`` beside the table of times, each a file of its own."""

from __future__ import annotations

# The module of a command has its name, with underscores, and a function ``main``.
STUDIES = {
    "scaling": "time and memory against length, as a plot",
    "quality": "bits per character of language models under one budget",
    "efficiency": "CAB's efficiency length: where softmax begins to cost more",
    "compositional-index": "CAB's score of task results in a file",
    "patterns": "what each mechanism supports, found by trying it",
}


def listing() -> str:
    """The commands and what they do, a line each."""
    width = max(map(len, STUDIES))
    return "\n".join(f"  {name:<{width}}  {text}" for name, text in STUDIES.items())
