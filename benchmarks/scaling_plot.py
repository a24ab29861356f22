"""Time and memory against length, a row of panels for every group of cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from subquad.benchmarks import plot
from subquad.benchmarks.crossover import QUANTITIES, grouped
from subquad.training.errors import CommandError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_AXES = {"time": ("time (ms)", 1e-3), "memory": ("extra memory (MiB)", 2.0**20)}
_PASSES = {"forward": "forward", "both": "forward + backward"}
_MOST_ROWS = 12  # beyond, a figure is no longer read


def write(path: str, records: Mapping[str, Any]) -> None:
    """Draw the records of a run into a file.

    Raises:
        CommandError: Nothing to draw, too much, or the file cannot be written.
    """
    plot.save(path, draw(records))


def draw(records: Mapping[str, Any]) -> Figure:
    """The figure of the records of a run.

    Raises:
        CommandError: Nothing was measured, or too many kinds of cases.
    """
    groups = grouped([case for case in records["cases"] if not case["error"]])
    if not groups:
        raise CommandError("--plot: nothing was measured")
    if len(groups) > _MOST_ROWS:
        raise CommandError(
            f"--plot: at most {_MOST_ROWS} rows of panels, got {len(groups)}; choose "
            "fewer names, --kinds or --windows"
        )
    names = dict.fromkeys(
        name
        for cases in groups.values()
        for case in cases
        for name, answer in case["contenders"].items()
        if "median_seconds" in answer
    )
    styles = plot.styles(list(names))
    figure, rows = plot.panels(len(groups), len(QUANTITIES))
    for (group, cases), row in zip(groups.items(), rows, strict=True):
        for quantity, axes in zip(QUANTITIES, row, strict=True):
            _panel(axes, quantity, cases, styles, records["expected_share"])
            axes.set_title(_title(*group), fontsize=10)
            _mark_crossover(axes, quantity, group, records["crossovers"])
    handles, labels = rows[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4)
    machine = records["machine"]
    figure.supxlabel(
        f"{machine['processor']}, {records['threads']} threads, "
        f"torch {machine['versions']['torch']}",
        fontsize=8,
    )
    return figure


def _panel(
    axes: Axes,
    quantity: str,
    cases: Sequence[Mapping[str, Any]],
    styles: Mapping[str, Mapping[str, Any]],
    share: float,
) -> None:
    words, unit = _AXES[quantity]
    axes.set_ylabel(words)
    lengths = [int(case["labels"]["L"]) for case in cases]
    for name, style in styles.items():
        points = [
            (length, case["contenders"][name][QUANTITIES[quantity]] / unit)
            for length, case in zip(lengths, cases, strict=True)
            if case["contenders"].get(name, {}).get(QUANTITIES[quantity])
        ]
        leaks = any(c["contenders"].get(name, {}).get("leaks") for c in cases)
        axes.plot(
            [x for x, _ in points],
            [y for _, y in points],
            label=f"{name} (leaks)" if leaks else name,
            **style,
        )
    if quantity == "time":
        roof = [1e3 * case["expected_seconds"] for case in cases]
        label = f"roof: {100 * share:.0f} % of the product rate + one copy"
        axes.plot(lengths, roof, "k--", linewidth=1, label=label)
    else:
        tensors = [case["tensor_bytes"] / unit for case in cases]
        axes.plot(lengths, tensors, "k:", linewidth=1)
        axes.annotate(
            "q + k + v + out",
            (lengths[-1], tensors[-1]),
            xytext=(0, 4),
            textcoords="offset points",
            ha="right",
            fontsize=8,
        )
    plot.length_axis(axes, lengths)
    axes.set_yscale("log")


def _title(entry: str, labels: tuple[tuple[str, str | int], ...]) -> str:
    words = [
        _PASSES[str(value)] if label == "pass" else f"{label} {value}"
        for label, value in labels
    ]
    return ", ".join([entry, *words])


def _mark_crossover(
    axes: Axes, quantity: str, group: Any, crossovers: Sequence[Mapping[str, Any]]
) -> None:
    entry, labels = group
    for found in crossovers:
        where = (found["entry"], found["labels"], found["quantity"])
        if where != (entry, dict(labels), quantity):
            continue
        length, (first, last) = found["length"], found["measured"]
        if length is None:
            text = f"softmax is cheaper up to {plot.short(last)}"
        elif length == first:
            text = f"cheaper than softmax from {plot.short(first)} on"
        else:
            plot.mark(axes, length, f"softmax costs more from L = {length:.0f}")
            return
        plot.note(axes, text)
