"""From which length on the library is cheaper than softmax over all keys."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

# What softmax over all keys is called in operators and in modules.
SOFTMAX = ("SDPA", "softmax")
# Quantities that grow with the length: name and key in the record of a contender.
QUANTITIES = {"time": "median_seconds", "memory": "extra_bytes"}


def softmax_of(case: Mapping[str, Any]) -> Any:
    """The record of softmax over all keys in a case, None if it takes no part."""
    contenders = case["contenders"]
    return next((contenders[name] for name in SOFTMAX if name in contenders), None)


def crossing(points: Sequence[tuple[int, float, float]]) -> float | None:
    """Where one cost falls below another for good.

    Args:
        points: Length, one cost and the other, positive, in the order of lengths.

    Returns:
        The length, between measured ones by lines of the logarithms; the first one
        if the cost is lower everywhere, None if it is not lower at the last.
    """
    if not points or points[-1][1] >= points[-1][2]:
        return None
    for (x0, a0, b0), (x1, a1, b1) in zip(points[-2::-1], points[:0:-1], strict=True):
        if a0 >= b0:
            begin, end = math.log(a0 / b0), math.log(a1 / b1)
            return float(x0 * (x1 / x0) ** (begin / (begin - end)))
    return float(points[0][0])


def grouped(cases: Sequence[Mapping[str, Any]]) -> dict[Any, list[Mapping[str, Any]]]:
    """Cases that differ in the length only, in its order."""
    groups: dict[Any, list[Mapping[str, Any]]] = {}
    for case in cases:
        labels = tuple(item for item in case["labels"].items() if item[0] != "L")
        groups.setdefault((case["entry"], labels), []).append(case)
    for group in groups.values():
        group.sort(key=lambda case: int(case["labels"]["L"]))
    return groups


def crossovers(cases: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The crossing with softmax of every group and quantity that has two lengths."""
    found = []
    for (entry, labels), group in grouped(cases).items():
        for quantity, key in QUANTITIES.items():
            points = []
            for case in group:
                ours = next(iter(case["contenders"].values())).get(key)
                softmax = (softmax_of(case) or {}).get(key)
                if ours and softmax:
                    points.append((int(case["labels"]["L"]), ours, softmax))
            if len(points) > 1:
                found.append(
                    {
                        "entry": entry,
                        "labels": dict(labels),
                        "quantity": quantity,
                        "length": crossing(points),
                        "measured": [points[0][0], points[-1][0]],
                    }
                )
    return found
