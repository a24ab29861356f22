"""Times of several runs, taken in turns."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Mapping, Sequence

from subquad.benchmarks.registry import Run

# A turn repeats short calls, so that the clock and cold caches do not show.
_TURN_SECONDS = 0.01
# A contender whose calls are long takes part in fewer rounds than the others.
_CONTENDER_SECONDS = 3.0
_MAX_CALLS = 1000


def estimate(run: Run) -> float:
    """Seconds of one call."""
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def interleave(
    runs: Mapping[str, Run], estimates: Mapping[str, float], rounds: int
) -> dict[str, list[float]]:
    """Take turns: each round every run has one turn, starting with another one.

    A disturbance by another process so falls on all. Where a turn has several calls,
    one more goes before them untimed: what fits in the caches is found there.

    Returns:
        Seconds per call, one number per turn.
    """
    names = list(runs)
    calls, turns = {}, {}
    for name in names:
        seconds = max(estimates[name], 1e-7)
        calls[name] = min(math.ceil(_TURN_SECONDS / seconds), _MAX_CALLS)
        turns[name] = max(1, min(rounds, int(_CONTENDER_SECONDS / seconds)))
    times: dict[str, list[float]] = {name: [] for name in names}
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for turn in range(rounds):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                if turn < turns[name]:
                    times[name].append(_turn(runs[name], calls[name]))
    finally:
        if collecting:
            gc.enable()
    return times


def _turn(run: Run, calls: int) -> float:
    if calls > 1:
        run()
    begin = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - begin) / calls


def spread(times: Sequence[float]) -> float:
    """Distance of the quartiles over the median; 0 for fewer than three times."""
    if len(times) < 3:
        return 0.0
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
    return (high - low) / middle
