"""Time and memory against length, with the crossover to softmax, as a plot.

The usual measurement with other defaults: many lengths, every contender's memory,
peers included, a plot and a JSON file.
"""

from __future__ import annotations

from collections.abc import Sequence

from subquad.benchmarks import run

_DEFAULTS = {
    "names": ("window_attention",),
    "lengths": tuple(256 << i for i in range(7)),
    "windows": (64,),
    "kinds": ("causal",),
    "against": ("einsum", "SDPA", "local-attention"),
    "memory": "all",
    "repeats": 5,
    "plot": "scaling.png",
    "json": "scaling.json",
}


def main(argv: Sequence[str]) -> int:
    """Run ``subquad bench scaling``.

    Returns:
        0; 1 if the library's result was wrong in a case.

    Raises:
        CommandError: Bad arguments, or a file that cannot be written.
    """
    return run.main(argv, "subquad bench scaling", _DEFAULTS)
