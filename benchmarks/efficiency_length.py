"""Where the fitted cost of softmax attention meets that of an efficient mechanism."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from subquad.training.errors import CommandError


@dataclass(frozen=True)
class Fit:
    """Two fitted costs and where they meet.

    Attributes:
        parabola: a, b, c of softmax attention, cost a x^2 + b x + c.
        line: d, e of the mechanism, cost d x + e.
        parabola_r2: Explained share of the variance of the costs.
        line_r2: The same of the line.
        length: The larger meeting point, None if the curves do not meet.
    """

    parabola: tuple[float, float, float]
    line: tuple[float, float]
    parabola_r2: float
    line_r2: float
    length: float | None

    def words(self) -> str:
        """The length, rounded, or why there is none."""
        if self.length is not None:
            text = str(round(self.length))
            return text if self.length > 0 else f"{text}: cheaper at every length"
        if self.parabola[0] > 0:
            return "none: cheaper at every length"
        return "none: softmax does not grow with the square"


def efficiency_length(
    lengths: Sequence[int],
    softmax: Sequence[float | None],
    efficient: Sequence[float | None],
    *,
    skip: int = 0,
    factor: float = 1.0,
) -> Fit:
    """Fit both costs by least squares and find where they meet.

    Args:
        lengths: At which costs were measured.
        softmax: Cost of softmax attention, None where there is none.
        efficient: Cost of the mechanism.
        skip: Lengths at the start that the line leaves out.
        factor: Of the costs; CAB fits thousandths of milliseconds.

    Raises:
        CommandError: Fewer than three costs of softmax or two of the mechanism.
    """
    x, y = _known(lengths, softmax, factor)
    u, v = _known(lengths[skip:], efficient[skip:], factor)
    if len(x) < 3 or len(u) < 2:
        raise CommandError(
            "efficiency: needs costs of softmax at three lengths and of the mechanism "
            f"at two, got {len(x)} and {len(u)}"
        )
    parabola, line = np.polyfit(x, y, 2), np.polyfit(u, v, 1)
    (a, b, c), (d, e) = map(float, parabola), map(float, line)
    return Fit(
        (a, b, c),
        (d, e),
        _r2(parabola, x, y),
        _r2(line, u, v),
        _larger_root(a, b - d, c - e),
    )


def _known(
    lengths: Sequence[int], costs: Sequence[float | None], factor: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    pairs = [(x, y) for x, y in zip(lengths, costs, strict=True) if y is not None]
    known = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return known[:, 0], factor * known[:, 1]


def _larger_root(a: float, b: float, c: float) -> float | None:
    discriminant = b * b - 4 * a * c
    # A parabola that opens downwards meets the line for the last time where softmax
    # becomes the cheaper one.
    if a <= 0 or discriminant < 0:
        return None
    return (-b + math.sqrt(discriminant)) / (2 * a)


def _r2(
    polynomial: NDArray[np.float64], x: NDArray[np.float64], y: NDArray[np.float64]
) -> float:
    residual = float(np.sum((y - np.polyval(polynomial, x)) ** 2))
    variation = float(np.sum((y - y.mean()) ** 2))
    return 1 - residual / variation if variation else 1.0
