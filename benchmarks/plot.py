"""Figures: what all plots of the benchmarks have in common."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subquad.benchmarks.output import write
from subquad.training.errors import CommandError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FORMATS = (".png", ".svg", ".pdf")
_PANEL = (6.4, 4.0)  # inches
_MARKERS = "osD^vP*X"
_BOX = {"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": "none"}


def check_plot(path: str) -> None:
    """Find out before a measurement whether a plot can be made.

    Raises:
        CommandError: matplotlib is missing, or the name says no known format.
    """
    if Path(path).suffix.lower() not in _FORMATS:
        raise CommandError(
            f"--plot: expected a name that ends in {', '.join(_FORMATS)}, got {path!r}"
        )
    if importlib.util.find_spec("matplotlib") is None:
        raise CommandError(
            '--plot: matplotlib is not installed: pip install "subquad[bench]"'
        )


def panels(rows: int, columns: int) -> tuple[Figure, list[list[Axes]]]:
    """A figure that needs no display, and its axes by row and column."""
    from matplotlib.figure import Figure

    width, height = _PANEL
    figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False).tolist()


def styles(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """One colour and marker per name, the same in every panel; the first stands out."""
    return {
        name: {
            "color": f"C{i % 10}",
            "marker": _MARKERS[i % len(_MARKERS)],
            "linewidth": 2.5 if i == 0 else 1.5,
            "zorder": 3 if i == 0 else 2,
        }
        for i, name in enumerate(names)
    }


def length_axis(axes: Axes, lengths: Sequence[int], logarithmic: bool = True) -> None:
    """Label the axis of lengths, with a tick at each one if there are few."""
    if logarithmic:
        axes.set_xscale("log", base=2)
        ticks = sorted(set(lengths))[:: max(1, len(set(lengths)) // 8)]
        axes.set_xticks(ticks, [short(length) for length in ticks])
        axes.minorticks_off()
    axes.set_xlabel("length L (tokens)")
    axes.grid(True, alpha=0.3)


def short(length: float) -> str:
    """A length as the command line takes it."""
    for factor, letter in ((1024**2, "M"), (1024, "k")):
        if length >= factor and length % factor == 0:
            return f"{length / factor:.0f}{letter}"
    return f"{length:.0f}"


def note(axes: Axes, text: str) -> None:
    """Words in the lower right corner, where growing curves leave room."""
    axes.text(
        *(0.98, 0.03), text, transform=axes.transAxes, ha="right", fontsize=9, bbox=_BOX
    )


def mark(axes: Axes, length: float, text: str) -> None:
    """A dotted line at a length with words beside its foot."""
    axes.axvline(length, color="0.4", linestyle=":", linewidth=1.5)
    axes.annotate(
        text,
        (length, 0.03),
        xycoords=("data", "axes fraction"),
        xytext=(4, 0),
        textcoords="offset points",
        fontsize=9,
        bbox=_BOX,
    )


def save(path: str, figure: Figure) -> None:
    """Write a figure in the format that its name says.

    Raises:
        CommandError: The file cannot be written.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format=Path(path).suffix[1:].lower(), dpi=120)
    write(path, buffer.getvalue())
