"""Costs over lengths with their fits and the lengths where these meet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from subquad.benchmarks import plot
from subquad.benchmarks.costs import Costs
from subquad.benchmarks.efficiency_length import Fit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FAR = 16  # times beyond the measured lengths, where a meeting point is not drawn
_UNITS = {"time": "time (ms)", "memory": "memory (MiB)"}


def write(path: str, costs: Costs, fits: Mapping[str, Mapping[str, Fit]]) -> None:
    """Draw into a file.

    Raises:
        CommandError: The file cannot be written.
    """
    plot.save(path, draw(costs, fits))


def draw(costs: Costs, fits: Mapping[str, Mapping[str, Fit]]) -> Figure:
    """A panel per quantity: points, fitted curves, meeting points."""
    quantities = costs.quantities()
    figure, (row,) = plot.panels(1, len(quantities))
    for (quantity, (table, factor)), axes in zip(quantities.items(), row, strict=True):
        first, last = _range(costs, fits[quantity])
        x = np.geomspace(first, last, 200)
        baseline = next(iter(table))
        curves = {name: fit.line for name, fit in fits[quantity].items()}
        styles = plot.styles(list(table))
        for name, values in table.items():
            points = [
                (length, cost)
                for length, cost in zip(costs.lengths, values, strict=True)
                if cost is not None
            ]
            style = {key: styles[name][key] for key in ("color", "marker")}
            fit = fits[quantity].get(name)
            words = f"{name}: {fit.words()}" if fit else name
            axes.plot(*zip(*points, strict=True), linestyle="", label=words, **style)
            polynomial = (
                next(iter(fits[quantity].values())).parabola
                if name == baseline
                else curves[name]
            )
            fitted = np.polyval(polynomial, x) / factor
            # A fit may fall below zero, where a logarithmic axis ends.
            fitted[fitted <= 0] = np.nan
            axes.plot(x, fitted, color=style["color"], linewidth=1.5)
            if fit and fit.length and first <= fit.length <= last:
                plot.mark(axes, fit.length, f"{fit.length:.0f}")
        plot.length_axis(axes, costs.lengths)
        axes.set_yscale("log")
        axes.set_ylabel(_UNITS[quantity])
        axes.legend(title="efficiency length", fontsize=9)
    return figure


def _range(costs: Costs, fits: Mapping[str, Fit]) -> tuple[float, float]:
    """Measured lengths, and meeting points that are not far from them."""
    first, last = costs.lengths[0], costs.lengths[-1]
    met = [fit.length or 0.0 for fit in fits.values()]
    near = [x for x in met if first / _FAR < x < last * _FAR]
    return min([first, *near]), max([last, *near])
